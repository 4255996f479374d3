"""What must not depend on how the work is cut up: cache, chunks, batch, stream, and earlier turns."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from filmstrip.api.assistant import Assistant
from filmstrip.api.load import load
from filmstrip.api.stream import AnswerStream
from filmstrip.config import RopeConfig, SamplingConfig
from filmstrip.errors import FilmstripError
from filmstrip.generation import TokenLoop, VideoLlavaForGeneration
from filmstrip.generation.step import decode_step, new_cache, prefill
from filmstrip.media.clip import Clip
from filmstrip.testing.tiny import tiny_hf_config, write_tiny_checkpoint
from filmstrip.text.prompt import Turn
from tests.models import GOLDEN, TEMPORAL, random_model
from tests.parity.batches import NUM_FRAMES, Inputs, make_inputs

# Cached and uncached attention, chunks and padding sum in another order. Logits of these models reach 8; worst seen
# 1.1e-5.
LOGITS = 1e-4
MODELS = {"plain": GOLDEN, "temporal": TEMPORAL}
# Rows that differ in length and media, each of them alone as well.
ROWS = ("tivtt", "tttttt", "iit", "tvvttt", "t")
FEW = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def embed(model: VideoLlavaForGeneration, inputs: Inputs) -> torch.Tensor:
    with torch.inference_mode():
        return model.embed(inputs.input_ids, inputs.pixel_values_images, inputs.pixel_values_videos)


def alone(inputs: Inputs, rows: tuple[str, ...], row: int) -> Inputs:
    """One row of a batch without its padding, with its own media."""
    assert inputs.attention_mask is not None
    real = inputs.attention_mask[row].bool()
    media = []
    for letter, pixels in (("i", inputs.pixel_values_images), ("v", inputs.pixel_values_videos)):
        before, own = sum(other.count(letter) for other in rows[:row]), rows[row].count(letter)
        media.append(pixels[before : before + own] if pixels is not None and own else None)
    return Inputs(inputs.input_ids[row : row + 1, real], None, *media)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("rows", [("tvtitt",), ROWS], ids=["single", "padded batch"])
def test_cached_equals_uncached(name: str, rows: tuple[str, ...]) -> None:
    """Logits of every step, against a run over the whole sequence from the start."""
    model = random_model(MODELS[name])
    inputs = make_inputs(model.config, rows)
    ids, mask = inputs.input_ids, inputs.attention_mask
    extra = torch.randint(0, 180, (len(rows), 6), generator=torch.Generator().manual_seed(3))
    full_ids = torch.cat([ids, extra], dim=1)
    full_mask = None if mask is None else torch.cat([mask, torch.ones_like(extra)], dim=1)
    with torch.inference_mode():
        whole = model(full_ids, inputs.pixel_values_images, inputs.pixel_values_videos, full_mask)
        cache = new_cache(model, len(rows), full_ids.shape[1])
        step_logits = prefill(model, cache, embed(model, inputs), mask)
        for step in range(extra.shape[1]):
            at = ids.shape[1] + step
            torch.testing.assert_close(step_logits, whole[:, at - 1], atol=LOGITS, rtol=0)
            seen = None if full_mask is None else full_mask[:, : at + 1]
            step_logits = decode_step(model, cache, extra[:, step], seen)
        torch.testing.assert_close(step_logits, whole[:, -1], atol=LOGITS, rtol=0)
    assert cache.length == full_ids.shape[1]


@given(cuts=st.sets(st.integers(1, 32), max_size=6), padded=st.booleans())
@FEW
def test_chunked_prefill_equals_whole(cuts: set[int], padded: bool) -> None:
    """Wherever the prompt is cut, inside a video too; what the cache holds in the end is the same as well."""
    model = random_model()
    inputs = make_inputs(model.config, ("tvtitvt", "titttt") if padded else ("tvttitt",))
    mask, x = inputs.attention_mask, embed(model, inputs)
    batch, length = inputs.input_ids.shape
    with torch.inference_mode():
        whole_cache, cache = (new_cache(model, batch, length) for _ in range(2))
        whole = prefill(model, whole_cache, x, mask)
        edges = [0, *sorted(cut for cut in cuts if cut < length), length]
        for start, end in pairwise(edges):
            logits = prefill(model, cache, x[:, start:end], None if mask is None else mask[:, :end])
    torch.testing.assert_close(logits, whole, atol=LOGITS, rtol=0)
    real = torch.ones(batch, length) if mask is None else mask
    kept = real.bool()[None, :, None, :, None]
    torch.testing.assert_close(cache.keys * kept, whole_cache.keys * kept, atol=LOGITS, rtol=0)
    torch.testing.assert_close(cache.values * kept, whole_cache.values * kept, atol=LOGITS, rtol=0)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "sampling",
    [
        {},
        {"repetition_penalty": 1.4},
        {"temperature": 1.0, "top_p": 0.95, "seed": 11},
        {"temperature": 2.0, "top_k": 20, "min_p": 0.01, "repetition_penalty": 1.2, "seed": 4},
    ],
    ids=["greedy", "greedy, penalty", "sampled", "sampled, penalty"],
)
def test_a_batch_equals_its_rows_alone(name: str, sampling: dict[str, float]) -> None:
    """Token by token."""
    model = random_model(MODELS[name])
    inputs = make_inputs(model.config, ROWS)
    together = model.generate(**inputs.ours(), max_new_tokens=12, **sampling)
    rows = [
        model.generate(**alone(inputs, ROWS, row).ours(), max_new_tokens=12, **sampling) for row in range(len(ROWS))
    ]
    assert together.tolist() == [row[0].tolist() for row in rows]
    assert len({tuple(row) for row in together.tolist()}) == len(ROWS)
    if "seed" in sampling:
        other = model.generate(**inputs.ours(), max_new_tokens=12, **{**sampling, "seed": 99})
        assert not torch.equal(other, together)


def test_dynamic_scaling_is_each_rows_own_in_a_batch() -> None:
    """Long and short rows, past and within the trained length of 12; each is scaled by its own length."""
    text = replace(GOLDEN.text, max_positions=12, rope=RopeConfig(scaling="dynamic", factor=2.0))
    model = random_model(replace(GOLDEN, text=text))
    inputs = make_inputs(model.config, ROWS)
    together = model.generate(**inputs.ours(), max_new_tokens=8)
    rows = [model.generate(**alone(inputs, ROWS, row).ours(), max_new_tokens=8)[0].tolist() for row in range(len(ROWS))]
    assert together.tolist() == rows


def test_a_row_that_ends_early_is_filled_and_disturbs_nobody() -> None:
    model = random_model()
    inputs = make_inputs(model.config, ROWS)
    free = model.generate(**inputs.ours(), max_new_tokens=12).tolist()
    others = {token for row in free[1:] for token in row}
    step = next(step for step, token in enumerate(free[0]) if step >= 2 and token not in others)
    first = free[0].index(free[0][step])
    model.eos_token_ids = (free[0][step],)
    ended = model.generate(**inputs.ours(), max_new_tokens=12)
    assert ended[0].tolist() == free[0][: first + 1] + [free[0][step]] * (11 - first)
    assert ended[1:].tolist() == free[1:]
    assert ended.dtype == torch.long


def test_it_stops_when_every_row_has_ended() -> None:
    model = random_model()
    inputs = make_inputs(model.config, ("tt", "tttt"))
    free = model.generate(**inputs.ours(), max_new_tokens=10)
    model.eos_token_ids = tuple(free[:, 2].tolist())
    lengths = [min(row.index(eos) for eos in model.eos_token_ids if eos in row) + 1 for row in free.tolist()]
    assert model.generate(**inputs.ours(), max_new_tokens=10).shape == (2, max(lengths))


@pytest.mark.parametrize("pad_token_id", [192, 5000, -1])
def test_a_row_ended_from_outside(pad_token_id: int) -> None:
    """Without EOS ids the row is filled with the pad id, which need not be in the vocabulary."""
    model = random_model(replace(GOLDEN, pad_token_id=pad_token_id))
    inputs = make_inputs(replace(GOLDEN, pad_token_id=192), ("tttt", "tt"))
    free = model.generate(**inputs.ours(), max_new_tokens=6, repetition_penalty=1.2).tolist()
    sampling = SamplingConfig(max_new_tokens=6, repetition_penalty=1.2)
    cache = new_cache(model, 2, inputs.input_ids.shape[1] + 6)
    loop = TokenLoop(
        model, cache, embed(model, inputs), inputs.input_ids, sampling, attention_mask=inputs.attention_mask
    )
    steps = []
    for ids_B in loop:
        steps.append(ids_B.tolist())
        if len(steps) == 2:
            loop.end(0)
    assert [step[0] for step in steps] == free[0][:2] + [pad_token_id] * 4
    assert [step[1] for step in steps] == free[1]


def test_ending_every_row_from_outside_stops_the_loop() -> None:
    model = random_model()
    inputs = make_inputs(model.config, ("ttt",))
    cache = new_cache(model, 1, 20)
    loop = TokenLoop(model, cache, embed(model, inputs), inputs.input_ids, SamplingConfig(max_new_tokens=9))
    taken = []
    for ids_B in loop:
        taken.append(int(ids_B))
        if len(taken) == 3:
            loop.end(0)
    assert len(taken) == 3
    assert cache.length == 3 + 2  # the third token was chosen and never read


def test_a_cache_that_is_too_small_is_one_clear_line() -> None:
    model = random_model()
    inputs = make_inputs(model.config, ("tttt",))
    loop = TokenLoop(
        model, new_cache(model, 1, 6), embed(model, inputs), inputs.input_ids, SamplingConfig(max_new_tokens=9)
    )
    with pytest.raises(FilmstripError, match=r"^the key/value cache holds 6 tokens and 7 are needed$"):
        list(loop)


# With text: the assistant, its stream and its chat, on a tiny random checkpoint.


@pytest.fixture(scope="module")
def assistant(tmp_path_factory: pytest.TempPathFactory) -> Assistant:
    torch.set_num_threads(1)
    directory = tmp_path_factory.mktemp("tiny")
    write_tiny_checkpoint(directory, tiny_hf_config(), seed=2)
    loaded = load(directory, device="cpu", quiet=True)
    loaded.store = None  # what it remembers beside conversations is tested in test_reuse.py
    return loaded


def clip(seed: int = 0, frames: int = NUM_FRAMES) -> Clip:
    pixels = np.random.default_rng(seed).integers(0, 256, (frames, 40, 36, 3), dtype=np.uint8)
    times = tuple(float(index) for index in range(frames))
    kind = "video" if frames > 1 else "image"
    return Clip(f"random {seed}", kind, pixels, times, tuple(range(frames)), frames, float(frames))


SAMPLINGS = [
    {"max_new_tokens": 24},
    {"max_new_tokens": 40, "temperature": 1.5, "seed": 3},
    {"max_new_tokens": 30, "temperature": 2.0, "seed": 8},
]


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "seed 3", "seed 8"])
def test_streamed_equals_whole(assistant: Assistant, sampling: dict[str, float]) -> None:
    """These models write any byte, so pieces often end inside a character; none may be split or changed."""
    whole = assistant.ask(clip(), "what moves", **sampling)
    stream = assistant.stream(clip(), "what moves", **sampling)
    pieces = list(stream)
    assert "".join(pieces).strip() == whole.text == stream.answer.text
    assert stream.answer.token_ids == whole.token_ids
    assert len(pieces) > 1
    special = {assistant.processor.tokenizer.eos_id}
    ids = [token for token in whole.token_ids if token not in special]
    assert whole.text == assistant.processor.tokenizer.decode(ids).strip()


def test_a_stop_string_cuts_the_same_text(assistant: Assistant) -> None:
    sampling = {"max_new_tokens": 40, "temperature": 1.5, "seed": 3}
    free = assistant.ask(clip(), "what moves", **sampling)
    middle = len(free.text) // 2
    stop = free.text[middle : middle + 2]
    stream = assistant.stream(clip(), "what moves", stop_strings=(stop,), **sampling)
    streamed = "".join(stream)
    assert stream.answer.stop_reason == "stop_string"
    assert streamed.strip() == stream.answer.text == free.text.partition(stop)[0].strip()
    count = len(stream.answer.token_ids)
    assert stream.answer.token_ids == free.token_ids[:count]


def test_a_batch_of_questions_equals_each_alone(assistant: Assistant) -> None:
    requests = [(clip(), "what"), ([], "how many"), ([clip(1, frames=1), clip(2)], "is this the red square")]
    answers = assistant.ask_batch(requests, max_new_tokens=16)
    for (media, question), answer in zip(requests, answers, strict=True):
        single = assistant.ask(media, question, max_new_tokens=16)
        assert (answer.text, answer.token_ids, answer.stop_reason) == (
            single.text,
            single.token_ids,
            single.stop_reason,
        )


def test_dynamic_rope_forgets_an_abandoned_turn_past_the_trained_length(tmp_path: Path) -> None:
    """Keys made while the conversation was long keep the stretched base, so a later short turn must not use them."""
    config = tiny_hf_config(text_rope_scaling={"rope_type": "dynamic", "factor": 2.0}, text_max_position_embeddings=200)
    write_tiny_checkpoint(tmp_path, config, seed=2)
    chat = load(tmp_path, device="cpu", quiet=True).chat(clip())
    chat.assistant.store = None  # what it remembers beside the conversation is tested in test_reuse.py
    chat.say("what", max_new_tokens=2)
    long_question = "how many squares is it " * 40
    assert len(chat.assistant.request(clip(), long_question).prompt.plan.input_ids) > 200
    next(chat.stream(long_question, max_new_tokens=60))  # one piece, then no more
    answer = chat.say("is it", max_new_tokens=4)
    assert len(answer.prompt.plan.input_ids) <= 200
    assert answer.prefix_reused == 0


def test_dynamic_rope_past_the_trained_length_reads_anew(tmp_path: Path) -> None:
    """There every key depends on the length of the whole prompt, so nothing cached for a shorter one may be kept."""
    scaling = {"rope_type": "dynamic", "factor": 2.0}
    config = tiny_hf_config(text_rope_scaling=scaling, text_max_position_embeddings=64)
    write_tiny_checkpoint(tmp_path, config, seed=2)
    chat = load(tmp_path, device="cpu", quiet=True).chat(clip())
    reused = []
    for question in ("what", "how many squares", "is the red square left"):
        answer = chat.say(question, max_new_tokens=12)
        request = chat.assistant.prepare(chat.clips, chat.turns[:-1], chat.assistant.settings({"max_new_tokens": 12}))
        assert answer.token_ids == AnswerStream(chat.assistant, request).answer.token_ids
        reused.append((len(answer.prompt.plan.input_ids) > 64, answer.prefix_reused))
    assert reused[-1] == (True, 0)


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "seed 3", "seed 8"])
def test_a_later_turn_equals_the_whole_prompt_from_scratch(assistant: Assistant, sampling: dict[str, float]) -> None:
    chat = assistant.chat([clip(), clip(1, frames=1)])
    questions = ["what is this", "how many squares", "is the red square left"]
    for turn, question in enumerate(questions):
        answer = chat.say(question, **sampling)
        turns: list[Turn] = chat.turns[:-1]  # the same conversation without this turn's answer
        request = assistant.prepare(chat.clips, turns, assistant.settings(sampling))
        fresh = AnswerStream(assistant, request).answer
        assert fresh.prefix_reused == 0
        assert answer.token_ids == fresh.token_ids
        assert answer.text == fresh.text
        last_visual = max(span.end for span in answer.prompt.plan.spans if span.kind is not None)
        assert (answer.prefix_reused >= last_visual) if turn else (answer.prefix_reused == 0)


def test_an_abandoned_turn_leaves_no_trace(assistant: Assistant) -> None:
    chat, other = assistant.chat(clip()), assistant.chat(clip())
    for chatting in (chat, other):
        chatting.say("what is this", max_new_tokens=8)
    stream = chat.stream("how many", max_new_tokens=12)
    next(stream)
    stream.close()
    assert len(chat.turns) == len(other.turns) == 2
    first, second = (chatting.say("is it red", max_new_tokens=12) for chatting in (chat, other))
    assert first.token_ids == second.token_ids
    assert first.prefix_reused > 0
