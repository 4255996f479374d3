"""16-bit weights in float32 arithmetic: the same as a float32 model that has these weights, on every path."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import filmstrip
from filmstrip.errors import FilmstripError
from filmstrip.generation import VideoLlavaForGeneration
from filmstrip.generation.fused import fused_decoding
from filmstrip.generation.step import decode_step, new_cache, prefill
from filmstrip.kernels import StoredMatrix, find_kernels, product, products
from filmstrip.models.wide import StoredLinear, is_stored, set_compute, widen
from filmstrip.testing.tolerances import TOLERANCES
from tests.models import GOLDEN, TEXT, random_model

BOUND = TOLERANCES["widened products"].bound
NARROW_BOUND = TOLERANCES["compiled step, 16-bit cache"].bound
HALVES = [torch.bfloat16, torch.float16]
CPU = torch.device("cpu")

needs_kernels = pytest.mark.skipif(find_kernels("wait")[0] is None, reason=find_kernels("wait")[1] or "off")


def pair(dtype: torch.dtype, text=TEXT) -> tuple[VideoLlavaForGeneration, VideoLlavaForGeneration]:
    """A widened model, and a float32 one of the same weights."""
    wide, plain = (random_model(replace(GOLDEN, text=text)).to(dtype) for _ in range(2))
    widen(wide)
    return wide.requires_grad_(False), plain.float().requires_grad_(False)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_logits_are_those_of_float32_with_these_weights(dtype: torch.dtype) -> None:
    wide, plain = pair(dtype)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(1, 3, 3, 28, 28, generator=generator)
    visual = GOLDEN.clip_tokens(3)
    ids = torch.cat([torch.arange(5), torch.full((visual,), GOLDEN.video_token_id), torch.arange(20, 60)])[None]
    ours, theirs = wide(ids, None, pixels), plain(ids, None, pixels)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, theirs, atol=BOUND, rtol=0)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_weights_stay_as_they_are_stored(dtype: torch.dtype) -> None:
    model = random_model().to(dtype)
    before = {name: value.data_ptr() for name, value in model.named_parameters()}
    widen(model)
    after = dict(model.named_parameters())
    assert after.keys() == before.keys()
    kept = [name for name, value in after.items() if value.data_ptr() == before[name]]
    assert all(after[name].dtype == dtype for name in kept)
    assert all(value.dtype == torch.float32 for name, value in after.items() if name not in kept)
    matrices = [name for name, value in after.items() if value.ndim == 2 and "temporal" not in name]
    assert matrices and set(matrices) <= set(kept)


def test_tied_weights_stay_tied() -> None:
    model = random_model(replace(GOLDEN, text=replace(TEXT, tie_embeddings=True))).bfloat16()
    widen(model)
    assert model.text_tower.lm_head.weight is model.text_tower.token_embedding.weight


@needs_kernels
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("batch", [1, 5])
def test_the_compiled_step_reads_16_bit(dtype: torch.dtype, biases: bool, batch: int) -> None:
    wide, plain = pair(dtype, replace(TEXT, attention_bias=biases, mlp_bias=biases, tie_embeddings=biases))
    ids = torch.arange(9).expand(batch, -1)
    caches = [new_cache(model, batch, 12) for model in (wide, plain)]
    with torch.inference_mode():
        for model, cache in zip((wide, plain), caches, strict=True):
            prefill(model, cache, model.text_tower.token_embedding(ids))
        fused = fused_decoding(wide, caches[0])
        assert fused is not None
        for token in range(3):
            new = torch.arange(batch) + token
            torch.testing.assert_close(fused(new), decode_step(plain, caches[1], new), atol=BOUND, rtol=0)


@needs_kernels
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("tied", [False, True])
def test_a_model_that_works_in_16_bits_may_step_in_float32(dtype: torch.dtype, tied: bool) -> None:
    model, plain = (random_model(replace(GOLDEN, text=replace(TEXT, tie_embeddings=tied))) for _ in range(2))
    model, plain = model.to(dtype).requires_grad_(False), plain.to(dtype).float().requires_grad_(False)
    plain.kv_dtype = dtype
    caches = [new_cache(each, 2, 12) for each in (model, plain)]
    before = {name: (value.data_ptr(), value.dtype) for name, value in model.named_parameters()}
    with torch.inference_mode():
        prefill(model, caches[0], model.text_tower.token_embedding(torch.arange(9).expand(2, -1)))
        caches[1].load({name: getattr(caches[0], name)[:, :, :, :9] for name in ("keys", "values")})
        assert fused_decoding(model, caches[0]) is None  # it was not allowed to
        model.wide_steps = True
        fused = fused_decoding(model, caches[0])
        assert fused is not None
        for token in range(3):
            new = torch.arange(2) + token
            ours, theirs = fused(new), decode_step(plain, caches[1], new)
            assert fused.agrees
            torch.testing.assert_close(ours, theirs, atol=NARROW_BOUND, rtol=0)
    assert {name: (value.data_ptr(), value.dtype) for name, value in model.named_parameters()} == before
    assert not is_stored(model)


@needs_kernels
def test_a_step_in_float32_sees_weights_that_were_changed_since() -> None:
    model = random_model().bfloat16().requires_grad_(False)
    model.wide_steps, logits = True, []
    for scale in (1.0, 2.0):
        model.text_tower.final_norm.weight.mul_(scale)
        cache = new_cache(model, 1, 4)
        with torch.inference_mode():
            prefill(model, cache, model.text_tower.token_embedding(torch.tensor([[3, 4]])))
            logits.append(fused_decoding(model, cache)(torch.tensor([5])))
    torch.testing.assert_close(logits[1], 2 * logits[0])


@needs_kernels
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("rows", range(1, 9))
def test_products_of_few_rows(dtype: torch.dtype, rows: int) -> None:
    for outputs, inputs in ((37, 48), (100, 61), (3, 7)):
        generator = torch.Generator().manual_seed(rows)
        weight = torch.randn(outputs, inputs, generator=generator).to(dtype)
        x, bias = torch.randn(2, rows, inputs, generator=generator)[:, :rows], torch.randn(outputs)
        x = x[0]
        theirs = torch.nn.functional.linear(x, weight.float(), bias)
        torch.testing.assert_close(product(x, StoredMatrix(weight, bias)), theirs, atol=1e-4, rtol=0)


@needs_kernels
def test_every_value_of_16_bit_is_read_right() -> None:
    """All patterns but infinities and NaN, subnormals included."""
    bits = torch.arange(-32768, 32768).to(torch.int16)
    for dtype in HALVES:
        values = bits.view(dtype)
        values = values[values.isfinite()][:, None].contiguous()
        ours = product(torch.ones(1, 1), StoredMatrix(values))[0]
        assert torch.equal(ours, values[:, 0].float())


def test_products_of_many_rows_go_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "PIECE", 1000)
    monkeypatch.setattr(products, "_local", type("Local", (), {})())
    weight, bias = torch.randn(77, 48).bfloat16(), torch.randn(77)
    x = torch.randn(3, 20, 48)
    theirs = torch.nn.functional.linear(x, weight.float(), bias)
    torch.testing.assert_close(product(x, StoredMatrix(weight, bias)), theirs, atol=1e-4, rtol=0)


def test_the_buffer_serves_in_and_out_of_inference_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_local", type("Local", (), {})())
    weight, x = torch.randn(6, 8).bfloat16(), torch.randn(20, 8)
    with torch.inference_mode():
        first = product(x, StoredMatrix(weight))
    with torch.no_grad():
        assert torch.equal(product(x, StoredMatrix(weight)), first)


def test_gradients_pass_through() -> None:
    linear = torch.nn.Linear(8, 4, bias=False).bfloat16()
    wide, x = StoredLinear(linear.weight, None), torch.randn(3, 8, requires_grad=True)
    wide(x).sum().backward()
    assert x.grad is not None and linear.weight.grad is not None
    torch.testing.assert_close(x.grad, linear.weight.float().sum(0).expand(3, -1))


def test_what_is_chosen() -> None:
    assert set_compute(random_model(), "float32", torch.float32, CPU) == torch.float32
    assert set_compute(random_model().bfloat16(), "stored", torch.bfloat16, CPU) == torch.bfloat16
    model = random_model().bfloat16()
    assert set_compute(model, "float32", torch.bfloat16, CPU) == torch.float32 == model.text_tower.compute_dtype
    with pytest.raises(FilmstripError, match="unknown compute 'fast'"):
        set_compute(random_model(), "fast", torch.float32, CPU)


@pytest.mark.parametrize("native", [1.0, 3.0])
def test_the_choice_is_measured_once(native: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    timed = []

    def measure(dtype: torch.dtype) -> tuple[float, float]:
        timed.append(dtype)
        return native * 2, 2.0

    monkeypatch.setattr(products, "_time_products", measure)
    assert products.faster_widened(torch.bfloat16) is products.faster_widened(torch.bfloat16) is (native > 1.5)
    assert timed == [torch.bfloat16]
    (tmp_path / "filmstrip" / "products.json").write_text("{ damaged")
    assert products.faster_widened(torch.bfloat16) is (native > 1.5)
    assert len(timed) == 2


def test_products_are_really_measured() -> None:
    assert all(0 < seconds < 60 for seconds in products._time_products(torch.bfloat16))


def test_a_model_loads_answers_and_saves_as_it_was(tmp_path: Path) -> None:
    filmstrip.load("tiny", quiet=True, dtype="bfloat16", compute="stored").save(tmp_path / "narrow")
    wide = filmstrip.load(tmp_path / "narrow", quiet=True, compute="float32")
    assert "bfloat16" in wide.summary and "computed in float32" in wide.summary
    answer = wide.ask((), "How many shapes are there?", max_new_tokens=4)
    assert (answer.run_card["dtype"], answer.run_card["compute"]) == ("bfloat16", "float32")
    wide.save(tmp_path / "again")
    names = [path.name for path in (tmp_path / "narrow").glob("*.safetensors")]
    assert names
    for name in names:
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "narrow" / name).read_bytes()
