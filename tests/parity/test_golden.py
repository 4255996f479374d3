"""The golden fixture: weights and inputs by formula, numbers that transformers 5.23 gave for them.

No reference is imported, so the core stays pinned where transformers is missing or changes. The second half plants
ten mistakes that are easy to make, and shows that the fixture tells each of them from the right model.
"""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from filmstrip.checkpoint.layouts import get_layout
from filmstrip.config import ModelConfig, ProjectorConfig
from filmstrip.generation import VideoLlavaForGeneration
from filmstrip.models import decoder
from filmstrip.models.record import Recorder
from filmstrip.models.taps import Taps
from filmstrip.ops import attention as attention_ops
from filmstrip.ops.attention import AttentionBackend
from filmstrip.ops.masks import AttentionMask
from filmstrip.testing.tolerances import TOLERANCES
from tests.models import GOLDEN, VISION

IDS = torch.tensor([[1, 5, 6, *[190] * 4, 7, *[190] * 4, 8, *[191] * 15, 9, 10]])
TEXT_IDS = torch.tensor([[1, 5, 6, 7, 8]])
GREEDY = [55, 34, 124, 123, 97, 113, 56, 98]

GOLDEN_NUMBERS = {
    "quick_gelu": {
        "logits": [3.96742, 3.82760, 3.63648, 2.68951, 0.43953, -1.55212],
        "sum": -63.741,
        "mean abs": 2.41635,
        "loss": 9.786326,
        "projector.image": [-1.40296, 0.67393, 1.15314, -1.02210],
        "projector.video": [-1.03331, 0.46790, 0.19906, -0.10632],
    },
    "gelu": {
        "logits": [3.98768, 3.87301, 3.69806, 2.75460, 0.50449, -1.48427],
        "sum": -62.245,
        "mean abs": 2.40285,
        "loss": 9.845713,
        "projector.image": [-1.40054, 0.67276, 1.15348, -1.02194],
        "projector.video": [-1.03910, 0.46650, 0.19527, -0.09733],
    },
}
TEXT_ONLY = [-4.00133, -3.98918, -2.93942, -2.44301]
BOUND = TOLERANCES["golden fixture"].bound
SUM_BOUND = TOLERANCES["golden fixture, sums"].bound


def wave(shape: tuple[int, ...], phase: float) -> torch.Tensor:
    count = torch.Size(shape).numel()
    return torch.sin(0.7 * torch.arange(count, dtype=torch.float64) + phase).reshape(shape).float()


def formula(name: str, j: int, shape: torch.Size) -> torch.Tensor:
    i = torch.arange(shape.numel(), dtype=torch.float64)
    values = 0.2 * torch.sin(0.37 * (i + 1) + 0.11 * (i % 7) * j + j)
    if "norm" in name and name.endswith("weight"):
        values += 1.0
    return values.reshape(shape).float()


def build(activation: str = "quick_gelu", config: ModelConfig = GOLDEN) -> VideoLlavaForGeneration:
    """Weights under the names of layout A, by the loader's own table."""
    tower = replace(VISION, activation=activation)
    model = VideoLlavaForGeneration(replace(config, image_tower=tower, video_tower=tower)).eval()
    layout = get_layout("A")
    disk = {layout.from_canonical(name).disk: value for name, value in model.named_parameters()}
    assert len(disk) == 176
    with torch.no_grad():
        for j, name in enumerate(sorted(disk)):
            disk[name].copy_(formula(name, j, disk[name].shape))
    return model


def pixels() -> tuple[torch.Tensor, torch.Tensor]:
    return wave((2, 3, 28, 28), 0.5), wave((1, 3, 3, 28, 28), 1.5)


def run(model: VideoLlavaForGeneration, taps: Taps | None = None) -> torch.Tensor:
    with torch.inference_mode():
        return model(IDS, *pixels(), torch.ones_like(IDS), taps=taps)


def close(actual: torch.Tensor, expected: list[float] | float, bound: float = BOUND) -> None:
    torch.testing.assert_close(actual, torch.tensor(expected), atol=bound, rtol=0)


def test_names_in_the_order_of_the_formula() -> None:
    names = sorted(get_layout("A").from_canonical(name).disk for name, _ in build().named_parameters())
    assert names[0] == "image_tower.vision_model.embeddings.class_embedding"
    assert names[-1] == "video_tower.vision_model.pre_layrnorm.weight"


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
@pytest.mark.parametrize("activation", GOLDEN_NUMBERS)
def test_the_table(activation: str, backend: AttentionBackend) -> None:
    expected, model, recorder = GOLDEN_NUMBERS[activation], build(activation), Recorder()
    model.set_attention(backend)
    logits = run(model, recorder)
    close(logits[0, -1, :6], expected["logits"])
    close(logits.abs().mean(), expected["mean abs"])
    close(logits.double().sum().float(), expected["sum"], SUM_BOUND)
    assert int(logits[0, -1].argmax()) == 55
    for site in ("projector.image", "projector.video"):
        close(recorder.activations[site][0, 0, :4], expected[site])


@pytest.mark.parametrize("activation", GOLDEN_NUMBERS)
def test_the_loss(activation: str) -> None:
    """Position t predicts token t+1; only the last two tokens are targets."""
    labels = IDS.clone()
    labels[:, :28] = -100
    logits = run(build(activation))
    loss = functional.cross_entropy(logits[0, :-1], labels[0, 1:], ignore_index=-100)
    # A loss near 10 is as exact as the two target logits and the log-sum over 200 others.
    close(loss, GOLDEN_NUMBERS[activation]["loss"])


def test_text_only() -> None:
    with torch.inference_mode():
        close(build()(TEXT_IDS)[0, -1, :4], TEXT_ONLY)


@pytest.mark.parametrize("activation", GOLDEN_NUMBERS)
def test_eight_greedy_tokens(activation: str) -> None:
    assert build(activation).generate(IDS, *pixels(), max_new_tokens=8)[0].tolist() == GREEDY


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_three_pads_on_the_left_change_nothing(backend: AttentionBackend) -> None:
    model = build()
    model.set_attention(backend)
    ids = torch.cat([torch.full((1, 3), 192), IDS], dim=1)
    mask = torch.ones_like(ids)
    mask[:, :3] = 0
    with torch.inference_mode():
        padded = model(ids, *pixels(), mask)
    # The sheet's own bound; the masked kernel and the causal one sum in another order.
    torch.testing.assert_close(padded[:, 3:], run(model), atol=1e-5, rtol=0)
    assert model.generate(ids, *pixels(), mask, max_new_tokens=8)[0].tolist() == GREEDY


# The ten mistakes, each a function that runs the model with the mistake in it.

Run = Callable[[pytest.MonkeyPatch], torch.Tensor]


def with_config(**changes: object) -> Run:
    return lambda _: run(build(config=replace(GOLDEN, **changes)))


def with_tap(site: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Run:
    return lambda _: run(build(), lambda name, value: change(value) if name == site else value)


def video_through_the_image_tower(_: pytest.MonkeyPatch) -> torch.Tensor:
    model = build()
    model.video_tower = model.image_tower
    return run(model)


def interleaved_rope(monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    def neighbours(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        half = x.shape[-1] // 2
        cos, sin = (table[:, None, :, :half].repeat_interleave(2, dim=-1) for table in (cos, sin))
        rotated = torch.stack([-x[..., 1::2], x[..., ::2]], dim=-1).flatten(-2)
        return x * cos + rotated * sin

    monkeypatch.setattr(decoder, "apply_rotary", neighbours)
    return run(build())


def tiled_kv_heads(monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    def tiled(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: AttentionMask, backend: AttentionBackend
    ) -> torch.Tensor:
        groups = q.shape[1] // k.shape[1]
        return attention_ops.attention(q, k.repeat(1, groups, 1, 1), v.repeat(1, groups, 1, 1), mask, backend)

    monkeypatch.setattr(decoder, "attention", tiled)
    return run(build())


# What is done, how far it moves the six logits of the table, and how far any logit.
MISTAKES: dict[str, tuple[Run, float, float]] = {
    "tanh gelu in the projector": (with_config(projector=ProjectorConfig("gelu_new")), 0.0023, 0.032),
    "erf gelu in the towers": (lambda _: run(build("gelu")), 0.068, 0.53),
    "layer -3 instead of -2": (with_config(select_layers=(-3,)), 0.41, 8.9),
    "layer -1 instead of -2": (with_config(select_layers=(-1,)), 4.0, 7.9),
    # The class token is dropped from the front, so a state rolled forward by one loses its last patch instead.
    "image: last token dropped": (with_tap("image_tower.hidden_states.3", lambda x: x.roll(1, dims=2)), 0.50, 8.0),
    "video: class token last": (with_tap("video_tower.selected", lambda x: x.roll(-1, dims=2)), 1.7, 9.8),
    "frames in reverse order": (with_tap("video_tower.selected", lambda x: x.flip(1)), 1.2, 5.5),
    "video through the image tower": (video_through_the_image_tower, 4.8, 9.6),
    "interleaved rope": (interleaved_rope, 3.1, 9.4),
    "key heads tiled": (tiled_kv_heads, 2.7, 8.4),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_apart(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Amounts are those an independent implementation saw; they are printed with two digits, hence the 3 %."""
    wrong, six, anywhere = MISTAKES[mistake]
    right = run(build())
    moved = (wrong(monkeypatch) - right).abs()
    assert float(moved[0, -1, :6].max()) == pytest.approx(six, rel=0.03)
    assert float(moved.max()) == pytest.approx(anywhere, rel=0.03)
    assert float(moved.max()) > 100 * BOUND
