"""What loading costs in memory: nothing where the file's dtype is kept, else one tensor more than the model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from filmstrip.checkpoint.layouts import get_layout
from filmstrip.checkpoint.load import load_weights
from filmstrip.checkpoint.tower_config import parse_text_tower
from filmstrip.checkpoint.towers import load_text_tower, read_tower
from filmstrip.errors import CheckpointError
from filmstrip.models.decoder import Decoder
from filmstrip.models.weightless import build_meta
from filmstrip.ops.masks import causal_mask
from filmstrip.testing.tiny import write_json

CONFIG = {
    "model_type": "llama",
    "vocab_size": 20_000,
    "hidden_size": 256,
    "intermediate_size": 2730,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "max_position_embeddings": 4096,
}
LARGEST = 20_000 * 256 * 2  # bytes in bfloat16
SLACK = 12 * 2**20  # what Python, the allocator and one-off imports take; a twentieth of what is at stake

# Prints resident memory: anonymous and all before and after, the peak, and whether parameters lie in a mapped file.
MEASURE = """
import json, sys
from pathlib import Path
import torch
from filmstrip.checkpoint.towers import load_text_tower, read_tower

def status():
    lines = Path("/proc/self/status").read_text().splitlines()
    return {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.endswith("kB")}

directory, dtype = Path(sys.argv[1]), getattr(torch, sys.argv[2])
read_tower(directory).describe()  # imports done, headers read
before = status()
tower, report = load_text_tower(directory, dtype=dtype)
after = status()
ranges = []
for line in Path("/proc/self/maps").read_text().splitlines():
    if str(directory) in line:
        begin, end = line.split()[0].split("-")
        ranges.append((int(begin, 16), int(end, 16)))
mapped = [any(b <= p.data_ptr() < e for b, e in ranges) for p in tower.parameters()]
print(json.dumps({
    "anonymous": after["RssAnon"] - before["RssAnon"],
    "peak": after["VmHWM"] - before["VmRSS"],
    "weights": sum(p.nbytes for p in tower.parameters()),
    "mapped": sum(mapped),
    "parameters": len(mapped),
}))
"""


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaMA of 29 million parameters in bfloat16, once as safetensors and once pickled."""
    folder = tmp_path_factory.mktemp("weights")
    config = parse_text_tower(CONFIG, "config.json")
    layout = get_layout("causal", "llama")
    state = {
        layout.from_canonical(name).disk: torch.randn(parameter.shape).bfloat16()
        for name, parameter in build_meta(config).named_parameters()
    }
    for kind in ("safetensors", "pickled"):
        (folder / kind).mkdir()
        write_json(folder / kind / "config.json", CONFIG)
    save_file(state, folder / "safetensors" / "model.safetensors")
    torch.save(state, folder / "pickled" / "pytorch_model.bin")
    return folder


def measure(directory: Path, dtype: str) -> dict[str, int]:
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(directory), dtype], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads memory figures from /proc")


@linux
@pytest.mark.parametrize("kind", ["safetensors", "pickled"])
def test_tensors_that_need_no_conversion_stay_in_the_map(weights: Path, kind: str) -> None:
    found = measure(weights / kind, "bfloat16")
    assert found["mapped"] == found["parameters"]
    assert found["anonymous"] < SLACK
    assert found["peak"] < 1.02 * found["weights"] + SLACK


@linux
@pytest.mark.parametrize("kind", ["safetensors", "pickled"])
def test_conversion_streams_tensor_by_tensor(weights: Path, kind: str) -> None:
    found = measure(weights / kind, "float32")
    assert found["mapped"] == 0
    assert found["peak"] < found["weights"] + LARGEST + SLACK
    # The margin must be able to tell: holding on to what was read would cost as much as the file has.
    assert found["weights"] / 2 > LARGEST + SLACK


@linux
def test_large_neighbours_are_converted_one_after_the_other(tmp_path: Path) -> None:
    """The head and the embedding follow each other and are nearly the whole model; a check may not copy them either."""
    config = CONFIG | {"vocab_size": 64_000, "hidden_size": 512, "intermediate_size": 512, "num_hidden_layers": 1}
    layout = get_layout("causal", "llama")
    model = build_meta(parse_text_tower(config, "config.json"))
    state = {layout.from_canonical(name).disk: torch.ones(value.shape) for name, value in model.named_parameters()}
    write_json(tmp_path / "config.json", config)
    save_file(state, tmp_path / "model.safetensors")
    found = measure(tmp_path, "bfloat16")
    assert found["peak"] < found["weights"] + 64_000 * 512 * 4 + SLACK


def test_a_parameter_or_buffer_that_nothing_fills_is_named(weights: Path) -> None:
    checkpoint = read_tower(weights / "safetensors")
    tower = checkpoint.build_meta()
    assert isinstance(tower, Decoder)
    tower.register_buffer("steps", torch.empty(3, device="meta"))
    with pytest.raises(CheckpointError, match="the model's tensor 'steps' is not filled by any checkpoint"):
        load_weights(tower, checkpoint)


def test_rotary_positions_are_computed_in_float32_after_loading(weights: Path) -> None:
    """No buffer holds them, so that a model in bfloat16 has the frequencies of one in float32."""
    tower, _ = load_text_tower(weights / "safetensors")
    assert not list(tower.buffers()) and tower.final_norm.weight.dtype == torch.bfloat16
    seen: dict[str, torch.Tensor] = {}

    def taps(name: str, value: torch.Tensor) -> torch.Tensor:
        seen[name] = value
        return value

    positions = torch.tensor([[3000]])
    for dtype in (torch.bfloat16, torch.float32):
        with torch.inference_mode():
            x = tower.token_embedding(torch.tensor([[1]])).to(dtype)
            tower.to(dtype)(x, positions, causal_mask(None, 1, 1, x.device), None, taps)
        cos = seen["text_tower.rotary.cos"]
        exact = torch.cos(3000 * 10_000.0 ** (-torch.arange(0, 64, 2, dtype=torch.float64) / 64))
        # bfloat16 has 8 bits; frequencies rounded to it would be wrong by radians at this position.
        tolerance = 2**-8 if dtype == torch.bfloat16 else 1e-3
        assert (cos[0, 0, :32].double() - exact).abs().max() < tolerance
