"""Choosing a token, the loop's bookkeeping, and `generate` at its edges."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from filmstrip.config import RopeConfig, SamplingConfig
from filmstrip.diagnostics.tracker import track_memory
from filmstrip.errors import ConfigError, FilmstripError, PromptError
from filmstrip.generation import TokenLoop, step
from filmstrip.generation.sample import filter_logits, penalise_repetition, sample_tokens
from filmstrip.generation.step import new_cache, prefill
from tests.models import GOLDEN, random_model

LOGITS = torch.tensor([[4.0, 3.0, 2.0, 1.0, 0.0]])  # probabilities .636 .234 .086 .032 .012
IDS = torch.tensor([[1, 2, 3]])


def kept(**sampling: float) -> list[int]:
    out = filter_logits(LOGITS, SamplingConfig(**sampling))
    assert torch.equal(out[out.isfinite()], LOGITS[out.isfinite()])
    return out[0].isfinite().nonzero().flatten().tolist()


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        ({}, [0, 1, 2, 3, 4]),
        ({"top_k": 2}, [0, 1]),
        ({"top_k": 5}, [0, 1, 2, 3, 4]),
        ({"top_k": 99}, [0, 1, 2, 3, 4]),
        ({"top_p": 0.6}, [0]),
        ({"top_p": 0.7}, [0, 1]),  # the token that crosses the threshold stays
        ({"top_p": 0.9}, [0, 1, 2]),
        ({"top_p": 0.01}, [0]),
        ({"min_p": 0.3}, [0, 1]),  # .234 / .636 = .37
        ({"min_p": 1.0}, [0]),
        ({"top_k": 3, "top_p": 0.7}, [0, 1]),
        # Top-p reads what top-k left: .731 of the two, so 0.7 keeps one. Of all five it would keep two.
        ({"top_k": 2, "top_p": 0.7}, [0]),
        ({"top_p": 0.9, "min_p": 0.3}, [0, 1]),
    ],
)
def test_what_each_filter_keeps(sampling: dict[str, float], expected: list[int]) -> None:
    assert kept(**sampling) == expected


def test_top_k_keeps_ties() -> None:
    out = filter_logits(torch.tensor([[1.0, 2.0, 2.0, 0.0]]), SamplingConfig(top_k=1))
    assert out[0].isfinite().tolist() == [False, True, True, False]


@given(
    st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=30),
    st.integers(0, 40),
    st.floats(0.001, 1.0),
    st.floats(0.0, 1.0),
)
@settings(max_examples=100, deadline=None)
def test_filters_only_remove_and_never_the_best(values: list[float], top_k: int, top_p: float, min_p: float) -> None:
    logits = torch.tensor([values])
    out = filter_logits(logits, SamplingConfig(top_k=top_k, top_p=top_p, min_p=min_p))
    stays = out.isfinite()
    assert torch.equal(out[stays], logits[stays])
    assert float(out.max()) == float(logits.max())
    assert not out.softmax(dim=-1).isnan().any()
    # Nothing that is dropped is more likely than something that stays.
    assert float(logits[~stays].max() if (~stays).any() else -torch.inf) <= float(logits[stays].min())


def test_repetition_penalty_pushes_both_signs_down() -> None:
    logits = torch.tensor([[2.0, -2.0, 2.0, -2.0, 0.0]])
    seen = torch.tensor([[True, True, False, False, True]])
    assert penalise_repetition(logits, seen, 2.0)[0].tolist() == [1.0, -4.0, 2.0, -2.0, 0.0]


def test_temperature_zero_is_the_best_after_the_penalty() -> None:
    seen = torch.zeros(1, 5, dtype=torch.bool)
    seen[0, 0] = True
    sampling = SamplingConfig(repetition_penalty=2.0)
    assert sample_tokens(LOGITS, sampling, seen, [torch.Generator()]).tolist() == [1]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_are_said(temperature: float, value: float) -> None:
    """Damaged weights, a float16 overflow: neither an answer made of one token nor a traceback."""
    logits, seen = LOGITS.clone(), torch.zeros_like(LOGITS, dtype=torch.bool)
    logits[0, 0] = value
    with pytest.raises(FilmstripError, match="logits are not numbers"):
        sample_tokens(logits, SamplingConfig(temperature=temperature), seen, [torch.Generator()])


def test_draws_follow_the_distribution() -> None:
    """1,000 draws of a fixed seed: top-p leaves two tokens, .731 to .269 (standard error .014)."""
    generator = torch.Generator().manual_seed(0)
    seen = torch.zeros(1, 5, dtype=torch.bool)
    sampling = SamplingConfig(temperature=1.0, top_p=0.7)
    draws = [int(sample_tokens(LOGITS, sampling, seen, [generator])) for _ in range(1000)]
    assert set(draws) == {0, 1}
    assert draws.count(0) / 1000 == pytest.approx(0.731, abs=0.045)


def test_temperature_flattens() -> None:
    seen = torch.zeros(1, 5, dtype=torch.bool)
    hot, cold = (
        [int(sample_tokens(LOGITS, SamplingConfig(temperature=t), seen, [generator])) for _ in range(300)]
        for t, generator in ((10.0, torch.Generator().manual_seed(0)), (0.2, torch.Generator().manual_seed(0)))
    )
    assert hot.count(0) < 120
    assert cold.count(0) > 285


def test_sampling_in_16_bit_is_done_in_float32() -> None:
    """300 logits 0.001 apart are only a few values in bfloat16 arithmetic; the filters must not add to that."""
    logits = torch.linspace(0, 0.3, 300)[None].bfloat16()
    seen = torch.zeros(1, 300, dtype=torch.bool)
    generators = [torch.Generator().manual_seed(1) for _ in range(2)]
    sampling = SamplingConfig(temperature=0.9, top_p=0.95)
    drawn = [sample_tokens(x, sampling, seen, [g]) for x, g in zip((logits, logits.float()), generators, strict=True)]
    assert drawn[0].tolist() == drawn[1].tolist()


def test_one_seed_gives_one_answer_and_no_seed_others() -> None:
    model = random_model()
    options = {"max_new_tokens": 16, "temperature": 2.0}
    first, second = (model.generate(IDS, seed=7, **options).tolist() for _ in range(2))
    assert first == second
    assert len({str(model.generate(IDS, **options).tolist()) for _ in range(4)}) > 1


def test_the_global_seed_is_left_alone() -> None:
    model = random_model()
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    model.generate(IDS, max_new_tokens=4, temperature=1.0, seed=3)
    assert torch.equal(torch.rand(1), expected)


def test_prefill_gives_the_last_position_and_advances() -> None:
    model = random_model()
    cache = new_cache(model, 1, 8)
    with torch.inference_mode():
        last = prefill(model, cache, model.embed(IDS))
        whole = model(IDS)
    assert cache.length == 3
    torch.testing.assert_close(last, whole[:, -1], atol=1e-4, rtol=0)  # one row of a matrix product, or all


@pytest.mark.parametrize("padding", [0, 7], ids=["plain", "padded"])
def test_long_prompts_are_read_in_chunks(monkeypatch: pytest.MonkeyPatch, padding: int) -> None:
    """Chunks give what the whole gives (attention sums in another order), and each is told of."""
    model = random_model()
    ids = torch.randint(0, 150, (2, 23), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, :padding] = 0
    given = mask if padding else None
    heard: list[tuple[int, int]] = []
    with torch.inference_mode():
        whole_cache, cache = new_cache(model, 2, 23), new_cache(model, 2, 23)
        whole = prefill(model, whole_cache, model.embed(ids), given)
        monkeypatch.setattr(step, "CHUNK", 5)
        chunked = prefill(model, cache, model.embed(ids), given, lambda *progress: heard.append(progress))
    torch.testing.assert_close(chunked, whole, atol=1e-4, rtol=0)
    assert heard == [(5, 23), (10, 23), (15, 23), (20, 23), (23, 23)]
    assert cache.length == whole_cache.length == 23
    answers = [model.generate(ids, attention_mask=given, max_new_tokens=8)]
    monkeypatch.undo()
    answers.append(model.generate(ids, attention_mask=given, max_new_tokens=8))
    assert torch.equal(*answers)


def test_reading_can_be_given_up_between_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model()
    monkeypatch.setattr(step, "CHUNK", 4)
    ids = torch.randint(0, 150, (1, 15), generator=torch.Generator().manual_seed(0))
    cache = new_cache(model, 1, 16)

    def stop(done: int, _total: int) -> None:
        if done == 8:
            raise KeyboardInterrupt

    with torch.inference_mode():
        whole = prefill(model, new_cache(model, 1, 16), model.embed(ids))
        with pytest.raises(KeyboardInterrupt):
            prefill(model, cache, model.embed(ids), on_chunk=stop)
        assert cache.length == 8  # what was read is kept, and can be gone on from
        rest = prefill(model, cache, model.embed(ids[:, 8:]))
    torch.testing.assert_close(rest, whole, atol=1e-4, rtol=0)


def test_prompts_whose_rotary_frequencies_follow_their_length_are_read_whole() -> None:
    stretched = replace(GOLDEN.text, max_positions=1000, rope=RopeConfig(scaling="dynamic", factor=2.0))
    assert step.chunk_tokens(stretched, 4000, 4000) == 4000
    assert step.chunk_tokens(stretched, 900, 900) == step.CHUNK
    assert step.chunk_tokens(GOLDEN.text, 4000, 4000) == step.CHUNK
    assert step.chunk_tokens(GOLDEN.text, 3, 4000) == 3


def test_memory_of_a_long_prompt_is_its_cache() -> None:
    """Four times the tokens take four times the cache, and of activations no more."""
    model = random_model()
    width = model.config.text.hidden_size
    peaks = []
    for length in (600, 2400):
        cache = new_cache(model, 1, length)
        x_BTD = torch.zeros(1, length, width)
        with torch.inference_mode(), track_memory() as tracker, tracker.phase("prefill") as phase:
            prefill(model, cache, x_BTD)
        peaks.append(phase.growth("allocated"))
    # The mask of a chunk has a row of the prompt's length for each of its 512 queries: a boolean, and its number.
    masks = 512 * (2400 - 600) * (1 + 4)
    assert peaks[1] <= 1.05 * peaks[0] + masks


def test_max_new_tokens_bounds_the_cache() -> None:
    """The last token is never read, so prompt + max_new_tokens slots suffice."""
    model = random_model()
    assert model.generate(IDS, max_new_tokens=1).shape == (1, 1)
    assert model.generate(IDS, max_new_tokens=5).shape == (1, 5)


def test_eos_is_yielded_and_ends_the_row() -> None:
    model = random_model()
    free = model.generate(IDS, max_new_tokens=10)[0].tolist()
    model.eos_token_ids = (199, free[4])
    first = free.index(free[4])
    assert model.generate(IDS, max_new_tokens=10)[0].tolist() == free[: first + 1]


def test_prompt_tokens_count_for_the_penalty_and_padding_does_not() -> None:
    model = random_model(replace(GOLDEN, pad_token_id=9))
    best = int(model.generate(IDS, max_new_tokens=1))
    # A huge penalty on the best token when it is in the prompt: something else must come.
    with_best = torch.cat([IDS, torch.tensor([[best]])], dim=1)
    after = model(with_best)[0, -1].detach()
    penalised = model.generate(with_best, max_new_tokens=1, repetition_penalty=1e6)
    assert int(penalised) not in with_best[0].tolist()
    assert float(after[penalised[0, 0]]) > 0
    padded = torch.tensor([[9, 9, 1, 2, 3]])
    mask = torch.tensor([[0, 0, 1, 1, 1]])
    options = {"max_new_tokens": 12, "repetition_penalty": 1.5}
    assert model.generate(padded, attention_mask=mask, **options).tolist() == model.generate(IDS, **options).tolist()


def test_the_loop_leaves_the_callers_mask_alone() -> None:
    model = random_model()
    mask = torch.ones_like(IDS)
    sampling = SamplingConfig(max_new_tokens=3)
    loop = TokenLoop(model, new_cache(model, 1, 8), model.embed(IDS), IDS, sampling, attention_mask=mask)
    assert len(list(loop)) == 3
    assert mask.shape == (1, 3)


def test_generation_needs_no_gradient() -> None:
    model = random_model()
    assert not model.generate(IDS, max_new_tokens=2).requires_grad
    assert model(IDS).requires_grad


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, not 0"),
        ({"temperature": -1.0}, "temperature must not be negative"),
        ({"top_p": 0.0}, "top_p must be above 0"),
    ],
)
def test_bad_sampling_values(options: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        random_model().generate(IDS, **options)


def test_a_missing_video_is_said_before_anything_is_generated() -> None:
    with pytest.raises(PromptError, match="1 video placeholders, but there are 0"):
        random_model().generate(torch.tensor([[1, 191, 2]]))


def test_a_tiny_temperature_is_greedy() -> None:
    """Dividing by it must not overflow into a distribution of NaN."""
    logits = torch.tensor([[3.0, 9.0, 8.9, -50.0]])
    seen, generator = torch.zeros(1, 4, dtype=torch.bool), torch.Generator().manual_seed(0)
    for temperature in (1e-20, 1e-36, 1e-40, 1e-45):
        sampling = SamplingConfig(temperature=temperature)
        assert sample_tokens(logits, sampling, seen, [generator]).tolist() == [1]


def test_generate_refuses_right_padding_and_empty_prompts() -> None:
    model = random_model()
    ids = torch.tensor([[1, 5, 6], [1, 5, 192]])
    with pytest.raises(PromptError, match="padded on the left"):
        model.generate(ids, attention_mask=torch.tensor([[1, 1, 1], [1, 1, 0]]))
    with pytest.raises(PromptError, match="the prompt is empty"):
        model.generate(torch.zeros(1, 0, dtype=torch.long))
