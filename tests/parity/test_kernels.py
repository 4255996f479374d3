"""The compiled step against its twin, `decode_step`: logits, the cache, and tokens."""

from dataclasses import replace

import pytest
import torch
from torch.nn.modules.module import register_module_forward_hook

from filmstrip.cache import KVCache
from filmstrip.config import RopeConfig, TextConfig
from filmstrip.generation import VideoLlavaForGeneration
from filmstrip.generation.fused import FusedDecoding, fused_decoding
from filmstrip.generation.step import decode_step, new_cache, prefill
from filmstrip.kernels import find_kernels
from filmstrip.models.decoder import SwiGLU
from filmstrip.testing.tolerances import TOLERANCES
from tests.models import GOLDEN, TEXT, random_model

BOUND = TOLERANCES["compiled step, float32"].bound
NARROW_BOUND = TOLERANCES["compiled step, 16-bit cache"].bound
SHAPES = {
    "grouped heads": TEXT,
    "one head a key": replace(TEXT, num_kv_heads=4),
    "tied head": replace(TEXT, tie_embeddings=True),
    "biases": replace(TEXT, attention_bias=True, mlp_bias=True),
    "linear rope": replace(TEXT, rope=RopeConfig(scaling="linear", factor=4.0)),
    "odd sizes": replace(TEXT, hidden_size=44, intermediate_size=61, head_dim=22, num_layers=2, vocab_size=195),
    "wide": replace(TEXT, hidden_size=256, intermediate_size=700, head_dim=64, num_layers=2),
}

pytestmark = pytest.mark.skipif(find_kernels("wait")[0] is None, reason=find_kernels("wait")[1] or "kernels are off")


def model_of(text: TextConfig) -> VideoLlavaForGeneration:
    model = random_model(replace(GOLDEN, text=text))
    for parameter in model.text_tower.parameters():
        parameter.data *= (TEXT.hidden_size / text.hidden_size) ** 0.5
    return model.requires_grad_(False)


def read(model: VideoLlavaForGeneration, mask: torch.Tensor | None, batch: int, length: int) -> KVCache:
    """A cache with a prompt read."""
    cache = new_cache(model, batch, length + 8)
    ids = torch.randint(0, 190, (batch, length), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        prefill(model, cache, model.text_tower.token_embedding(ids), mask)
    return cache


def padded(batch: int, length: int) -> torch.Tensor:
    """Rows of different lengths, padded on the left, with room for the tokens to come."""
    mask = torch.ones(batch, length, dtype=torch.long)
    for row in range(batch):
        mask[row, : 2 * row] = 0
    return mask


@pytest.mark.parametrize("batch", range(1, 9))
@pytest.mark.parametrize("shape", SHAPES)
def test_steps_give_the_logits_of_the_twin(shape: str, batch: int) -> None:
    model = model_of(SHAPES[shape])
    mask = padded(batch, 20) if batch > 1 else None
    caches = [read(model, mask, batch, 20) for _ in range(2)]
    fused = fused_decoding(model, caches[1])
    assert fused is not None
    for step in range(4):
        ids = torch.arange(batch) + 10 * step
        if mask is not None:
            mask = torch.cat([mask, mask.new_ones(batch, 1)], dim=1)
        with torch.inference_mode():
            theirs, ours = decode_step(model, caches[0], ids, mask), fused(ids, mask)
        assert theirs.abs().max() > 1
        torch.testing.assert_close(ours, theirs, atol=BOUND, rtol=0)
        assert caches[1].length == caches[0].length
        for name in ("keys", "values"):
            filled = [getattr(cache, name)[:, :, :, : cache.length] for cache in caches]
            torch.testing.assert_close(filled[1], filled[0], atol=BOUND, rtol=0)


@pytest.mark.parametrize("shape", ["grouped heads", "odd sizes"])
@pytest.mark.parametrize("kept", [torch.float16, torch.bfloat16])
def test_a_narrower_cache_gives_the_logits_of_the_twin(kept: torch.dtype, shape: str) -> None:
    model = model_of(SHAPES[shape])
    model.kv_dtype = kept
    caches = [read(model, padded(3, 20), 3, 20) for _ in range(2)]
    assert caches[0].keys.dtype == kept
    fused = fused_decoding(model, caches[1])
    assert fused is not None
    ids, mask = torch.tensor([5, 7, 11]), padded(3, 21)
    with torch.inference_mode():
        theirs, ours = decode_step(model, caches[0], ids, mask), fused(ids, mask)
    # A sum that differs in the last place may round to the neighbouring number of 16 bits: one or two of a new key.
    torch.testing.assert_close(ours, theirs, atol=NARROW_BOUND, rtol=0)
    spacing = torch.finfo(kept).eps
    for name in ("keys", "values"):
        theirs, ours = (getattr(cache, name)[:, :, :, :21].float() for cache in caches)
        torch.testing.assert_close(ours, theirs, atol=spacing / 100, rtol=spacing)
        assert (ours == theirs).float().mean() > 0.99


def test_what_is_kept_is_rounded_as_pytorch_rounds() -> None:
    """Values of one step, which are biases here: ties, subnormal numbers, infinities and what is not a number."""
    text = replace(TEXT, attention_bias=True, num_layers=1)
    odd = [0.0, -0.0, 1 + 2**-11, 1 + 3 * 2**-11, 1 + 2**-8, 1 + 3 * 2**-8, 65519.0, 65520.0, 1e-7, 3e-8, -2.9e-8, 6e-5]
    for kept in (torch.float16, torch.bfloat16):
        model = model_of(text)
        model.kv_dtype = kept
        linear = model.text_tower.blocks[0].attention.v_proj
        torch.nn.init.zeros_(linear.weight)
        linear.bias.data = torch.tensor(odd).repeat(linear.bias.numel() // len(odd) + 1)[: linear.bias.numel()]
        cache = new_cache(model, 1, 4)
        fused = fused_decoding(model, cache)
        assert fused is not None
        with torch.inference_mode():
            fused._run(torch.tensor([3]), None)
        written = cache.values[0, 0, :, 0].flatten()
        assert torch.equal(written, linear.bias.data.to(kept))


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_change_nothing(threads: int) -> None:
    model = model_of(replace(TEXT, hidden_size=512, intermediate_size=1024, head_dim=128))  # large enough for threads
    caches, logits = [read(model, None, 2, 9) for _ in range(2)], []
    for count, cache in zip((1, threads), caches, strict=True):
        torch.set_num_threads(count)
        fused = fused_decoding(model, cache)
        assert fused is not None and fused._step._step.threads == count
        with torch.inference_mode():
            logits.append(fused(torch.tensor([3, 4])))
    torch.set_num_threads(1)
    assert torch.equal(*logits)


def test_a_row_equals_the_row_alone() -> None:
    """Bit for bit: each row's sums run in the same order whatever stands beside it."""
    model = model_of(TEXT)
    cache, alone = read(model, None, 3, 9), new_cache(model, 1, 17)
    alone.load({name: getattr(cache, name)[:, 1:2, :, :9] for name in ("keys", "values")})
    fused, single = fused_decoding(model, cache), fused_decoding(model, alone)
    assert fused is not None and single is not None
    with torch.inference_mode():
        assert torch.equal(fused(torch.tensor([3, 4, 5]))[1], single(torch.tensor([4]))[0])


def test_a_long_context() -> None:
    """Softmax over 3,000 slots, among them scores far apart."""
    model = model_of(replace(TEXT, max_positions=4096))
    for block in model.text_tower.blocks:
        block.attention.q_proj.weight.data *= 6
    caches = [read(model, None, 1, 3000) for _ in range(2)]
    fused = fused_decoding(model, caches[1])
    assert fused is not None
    with torch.inference_mode():
        theirs, ours = decode_step(model, caches[0], torch.tensor([5])), fused(torch.tensor([5]))
    torch.testing.assert_close(ours, theirs, atol=BOUND, rtol=0)


def test_generation_uses_it_and_gives_the_same_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(TEXT)
    ids = torch.randint(0, 190, (3, 12), generator=torch.Generator().manual_seed(2))
    steps = []
    run = FusedDecoding.__call__
    monkeypatch.setattr(FusedDecoding, "__call__", lambda *inputs: steps.append(1) or run(*inputs))
    fast = model.generate(ids, max_new_tokens=24)
    assert len(steps) == 23
    monkeypatch.setattr("filmstrip.generation.loop.fused_decoding", lambda model, cache: None)
    assert torch.equal(model.generate(ids, max_new_tokens=24), fast)


def test_what_is_not_usual_goes_through_the_twin() -> None:
    model = model_of(TEXT)
    assert fused_decoding(model, read(model, None, 1, 4)) is not None
    assert fused_decoding(model, new_cache(model, 9, 4)) is None
    model.set_attention("eager")
    assert fused_decoding(model, new_cache(model, 1, 4)) is None
    model.set_attention("sdpa")
    handle = model.text_tower.blocks[1].mlp.register_forward_hook(lambda module, args, output: output)
    assert fused_decoding(model, new_cache(model, 1, 4)) is None
    handle.remove()
    projection = model.text_tower.blocks[0].attention.q_proj
    projection.weight.data = projection.weight.data.T
    assert fused_decoding(model, new_cache(model, 1, 4)) is None
    dynamic = model_of(replace(TEXT, rope=RopeConfig(scaling="dynamic", factor=2.0)))
    assert fused_decoding(dynamic, new_cache(dynamic, 1, 4)) is None
    pruned = model_of(TEXT)
    pruned.text_tower.blocks = pruned.text_tower.blocks[:2]
    assert fused_decoding(pruned, new_cache(pruned, 1, 4)) is None
    narrowed = model_of(TEXT)
    narrowed.text_tower.blocks[1].mlp.up_proj = torch.nn.Linear(64, 48, bias=False)
    assert fused_decoding(narrowed, new_cache(narrowed, 1, 4)) is None
    double = model_of(TEXT).double()
    assert fused_decoding(double, new_cache(double, 1, 4)) is None


def test_a_changed_decoder_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Code that somebody changes is what runs: the first step is compared, and the kernel left alone."""
    forward = SwiGLU.forward
    ids = torch.randint(0, 190, (2, 12), generator=torch.Generator().manual_seed(2))
    before = model_of(TEXT).generate(ids, max_new_tokens=12)
    monkeypatch.setattr(SwiGLU, "forward", lambda self, x: 1.5 * forward(self, x))
    changed = model_of(TEXT)
    tokens = changed.generate(ids, max_new_tokens=12)
    assert list(vars(changed.text_tower)["_kernel_agrees"].values()) == [False]
    monkeypatch.setattr("filmstrip.generation.loop.fused_decoding", lambda model, cache: None)
    assert torch.equal(tokens, model_of(TEXT).generate(ids, max_new_tokens=12))
    assert not torch.equal(tokens, before)


def test_a_decoder_that_is_changed_between_answers_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = torch.randint(0, 190, (2, 12), generator=torch.Generator().manual_seed(2))
    model, forward = model_of(TEXT), SwiGLU.forward
    before = model.generate(ids, max_new_tokens=12)
    monkeypatch.setattr(SwiGLU, "forward", lambda self, x: 1.5 * forward(self, x))
    tokens = model.generate(ids, max_new_tokens=12)
    assert list(vars(model.text_tower)["_kernel_agrees"].values()) == [True, False]
    assert torch.equal(tokens, model_of(TEXT).generate(ids, max_new_tokens=12))
    assert not torch.equal(tokens, before)


@pytest.mark.parametrize("change", ["forward of one block", "another eps", "another activation", "hook of all modules"])
def test_a_changed_module_is_noticed(change: str, request: pytest.FixtureRequest) -> None:
    model = model_of(TEXT)
    assert fused_decoding(model, new_cache(model, 1, 8)) is not None
    block = model.text_tower.blocks[1]
    if change == "another eps":
        block.mlp_norm.eps *= 2
    elif change == "another activation":
        block.mlp.activation = torch.nn.functional.relu
    elif change == "hook of all modules":
        request.addfinalizer(register_module_forward_hook(lambda module, inputs, output: None).remove)
    else:
        block.forward = lambda *arguments: type(block).forward(block, *arguments)
    assert fused_decoding(model, new_cache(model, 1, 8)) is None


def test_another_default_dtype_changes_nothing() -> None:
    """The kernel writes float32, whatever new tensors are by default."""
    model, ids = model_of(TEXT), torch.tensor([[5, 7, 11]])
    expected = model.generate(ids, max_new_tokens=6)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(model.generate(ids, max_new_tokens=6), expected)
        fused = fused_decoding(model, new_cache(model, 1, 4))
        assert fused is not None and fused._step._logits.dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_full_cache_is_an_error() -> None:
    model = model_of(TEXT)
    cache = read(model, None, 1, 4)
    fused = fused_decoding(model, cache)
    assert fused is not None
    cache.length = cache.capacity
    with pytest.raises(Exception, match="cache holds 12 tokens and 13 are needed"):
        fused(torch.tensor([1]))
