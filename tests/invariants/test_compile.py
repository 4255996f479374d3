"""Plain annotations do not stand in the way of `torch.compile`.

In a process of its own: under pytest the import hook wraps every function in a type checker, which does break graphs.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from filmstrip.errors import ConfigError
from filmstrip.generation import compiled
from filmstrip.generation.step import new_cache
from tests.models import TEMPORAL, random_model

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]

SCRIPT = """
import torch
from tests.models import TEMPORAL, random_model
from filmstrip.models.decoder import DecoderBlock
from filmstrip.ops.masks import AttentionMask

assert not hasattr(DecoderBlock.forward, "__wrapped__"), "the type-checking hook is active"
torch.set_num_threads(1)
torch.manual_seed(0)


def same(name, compiled, plain, *args):
    with torch.inference_mode():
        difference = float((compiled(*args) - plain(*args)).abs().max())
    assert difference < 1e-4, (name, difference)  # generated kernels sum in another order; values reach 8


model = random_model(TEMPORAL)
x = torch.randn(2, 7, 64)
rotary = (torch.randn(2, 7, 16), torch.randn(2, 7, 16))
block = model.text_tower.blocks[0]
same("block", torch.compile(block, fullgraph=True), block, x, rotary, AttentionMask(is_causal=True), "sdpa")

# What follows is traced in one graph but not turned into machine code, which takes a minute and shows no more.
trace = lambda f: torch.compile(f, fullgraph=True, backend="aot_eager")
mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1] * 7])
same("decode", trace(model.decode), model.decode, x)
same("decode, padded", trace(model.decode), model.decode, x, mask)
same("images", trace(model.encode_images), model.encode_images, torch.randn(2, 3, 28, 28))
same("videos", trace(model.encode_videos), model.encode_videos, torch.randn(1, 3, 3, 28, 28))

# The whole forward checks the ids it is given, so it looks at values and is more than one graph.
ids = torch.tensor([[1, 5] + [190] * 4 + [2] + [191] * 15 + [3]])
media = (torch.randn(1, 3, 28, 28), torch.randn(1, 3, 3, 28, 28))
same("forward", torch.compile(model.forward, backend="aot_eager"), model.forward, ids, *media)
"""


def test_blocks_towers_and_forward_compile() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_without_a_compiler_it_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model(TEMPORAL)
    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", missing)
    with pytest.raises(ConfigError, match="found none: install one"):
        model.compile_towers()
    assert not model.compiled


def missing() -> str:
    raise RuntimeError("No working C++ compiler found")


def test_sizes_that_the_compiler_would_give_up_on_are_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "_MOST_SIZES", 1)
    model = random_model()
    assert compiled.compiled_decoding(model, new_cache(model, 2, 20)) is not None
    assert compiled.compiled_decoding(model, new_cache(model, 3, 20)) is None
    assert compiled.compiled_decoding(model, new_cache(model, 2, 40)) is not None, "it is of the first's rounded size"


DECODING = """
import torch
from torch._dynamo.utils import counters
from tests.models import random_model

torch.set_num_threads(1)
model = random_model().requires_grad_(False)
ids = torch.randint(0, 190, (3, 12), generator=torch.Generator().manual_seed(2))
mask = torch.ones_like(ids)
mask[1, :4] = 0
padded = model.generate(ids, attention_mask=mask, max_new_tokens=24)
longer = model.generate(ids[:, :9], max_new_tokens=40)
model.compile_towers()
assert torch.equal(model.generate(ids, attention_mask=mask, max_new_tokens=24), padded)
graphs = counters["stats"]["unique_graphs"]
assert graphs == 1, graphs
assert torch.equal(model.generate(ids[:, :9], max_new_tokens=40), longer)
assert counters["stats"]["unique_graphs"] == graphs, "another length of the same batch compiled anew"
"""


def test_steps_of_decoding_compile_once_and_give_the_same_tokens() -> None:
    done = subprocess.run(
        [sys.executable, "-c", DECODING], cwd=ROOT, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
