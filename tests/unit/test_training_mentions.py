"""Labels at the tokens that name a shape, read back as words and checked against the scene."""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from filmstrip.checkpoint.resolve import resolve
from filmstrip.text.tokenizer import Tokenizer
from filmstrip.training.batches import IGNORE
from filmstrip.training.conversations import ConversationBatches
from filmstrip.training.mentions import (
    EXTREMES,
    FACTS,
    MentionLabels,
    find_names,
    mention_labels,
    naming_tokens,
    scene_extremes,
    scene_measures,
)
from filmstrip.training.motion import shape_event
from filmstrip.training.tiny import TINY
from filmstrip.world import CLIPS, COLOUR_NAMES, EVENTS, SHAPES, Scene, Shape, ask_about, sample_clip


def mentions(ids: list[int], scene: Scene, words: Mapping[int, str]) -> list[tuple[int, Shape]]:
    """The names that one shape has."""
    return [(token, meant[0]) for token, meant in find_names(ids, scene, words) if len(meant) == 1]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_directory(Path(resolve("tiny")))


def test_every_name_is_one_token(tokenizer: Tokenizer) -> None:
    assert sorted(naming_tokens(tokenizer).values()) == sorted((*SHAPES, *COLOUR_NAMES, "shape"))


def test_names_in_questions_are_found(tokenizer: Tokenizer) -> None:
    """All that a pattern finds in the text, and what each is called is true of the shape it is said to be."""
    rng, words = np.random.default_rng(0), naming_tokens(tokenizer)
    pattern = re.compile(rf"(?:({'|'.join(COLOUR_NAMES)}) )?\b({'|'.join(SHAPES)}|shape)\b")
    count = 0
    for _ in range(150):
        scene = sample_clip(rng, "train", CLIPS)
        for question in ask_about(scene, rng, 8):
            ids = tokenizer.encode(question.text, add_special=False).ids
            found = mentions(ids, scene, words)
            expected = []
            for colour, noun in pattern.findall(question.text):
                if noun == "shape" and not colour:
                    continue
                meant = [
                    one
                    for one in scene.shapes
                    if (noun in (one.shape, "shape")) and (not colour or any(colour in name for name in one.names))
                ]
                expected += meant if len(meant) == 1 else []
            assert [shape for _, shape in found] == expected, question.text
            count += len(found)
    assert count > 300


def test_labels_are_the_truth_of_the_scene(tokenizer: Tokenizer) -> None:
    """In words and in the frame: each fact is compared with the scene itself."""
    rng, words = np.random.default_rng(1), naming_tokens(tokenizer)
    for _ in range(60):
        scene = sample_clip(rng, "train", CLIPS)
        text = "".join(f" the {shape.shape}" for shape in scene.shapes)
        ids = torch.tensor([tokenizer.encode(text, add_special=False).ids])
        labels = mention_labels([scene], ids, torch.full_like(ids, IGNORE), words)
        for token, shape in mentions(ids[0].tolist(), scene, words):
            told = dict(zip(FACTS, labels.facts[0, token].tolist(), strict=True))
            assert labels.named[0, token] == 1
            event = shape_event(shape)
            assert told["event"] == (0 if event is None else 1 + EVENTS.index(event.kind))
            assert told["event_frame"] == (0 if event is None else event.start)
            assert (told["first"], told["end"]) == (shape.first_frame, shape.end_frame)
            size, x, y = labels.measures[0, token].tolist()
            assert size == pytest.approx(10 * shape.size)
            seen = [shape.position(frame) for frame in range(scene.num_frames) if shape.visible(frame)]
            assert (x, y) == pytest.approx(tuple(10 * np.mean(seen, axis=0)), abs=1e-5)
            if shape.event is not None:
                starts = [one.event.start for one in scene.shapes if one.event is not None]
                before, after = labels.neighbours[0, token].tolist()
                assert (before == 0) == (shape.event.start == min(starts))
                assert (after == 0) == (shape.event.start == max(starts))
            else:
                assert (labels.neighbours[0, token] == IGNORE).all()
        assert (labels.facts[labels.named == 0] == IGNORE).all()


def test_whether_it_is_there_is_what_presence_asks_for(tokenizer: Tokenizer) -> None:
    rng, words = np.random.default_rng(4), naming_tokens(tokenizer)
    said = {"yes": 0, "no": 0}
    for _ in range(200):
        scene = sample_clip(rng, "train", CLIPS)
        for question in ask_about(scene, rng, 2, ("presence",)):
            ids = torch.tensor([tokenizer.encode(question.text, add_special=False).ids])
            there = mention_labels([scene], ids, torch.full_like(ids, IGNORE), words).there
            assert there[there != IGNORE].tolist() == [question.answer == "yes"], question.text
            said[question.answer] += 1
    assert min(said.values()) > 50, said


def test_extremes_agree_with_the_answers() -> None:
    """Questions for the leftmost, the biggest, the first event: the labels know the same shape, or none."""
    rng = np.random.default_rng(2)
    asked = dict.fromkeys(EXTREMES, 0)
    for _ in range(600):
        scene = sample_clip(rng, "train", CLIPS)
        told = dict(zip(EXTREMES, scene_extremes(scene, scene_measures(scene)), strict=True))
        for question in ask_about(scene, rng, 6, ("position", "size", "events")):
            subject = {"first": "first event", "last": "last event"}.get(question.subject, question.subject)
            if subject in told and told[subject] != IGNORE:
                meant = [one for one in scene.shapes if one.colour == COLOUR_NAMES[told[subject]]]
                assert meant[0].shape in question.answer, (question.text, question.answer)
                asked[subject] += 1
    assert all(count > 2 for count in asked.values()), asked


def test_answers_are_not_looked_at(tokenizer: Tokenizer) -> None:
    """A name in an answer is the answer's: what it is called there needs no looking up."""
    words = naming_tokens(tokenizer)
    scene = next(s for s in (sample_clip(np.random.default_rng(n), "train", CLIPS) for n in range(9)) if s.shapes)
    ids = torch.tensor([tokenizer.encode(f" the {scene.shapes[0].name}", add_special=False).ids])
    assert not mention_labels([scene], ids, ids, words).named.any()


def test_batches_carry_them(tokenizer: Tokenizer) -> None:
    """Batches of pictures and of clips do; where rows have both, a name may be of either, and there are none."""
    batches = ConversationBatches(0, TINY, tokenizer, 4, image_every=4, mixed_every=12)
    for number, carries in ((0, True), (1, False), (2, True)):
        batch = batches(number)
        assert isinstance(batch.mentions, MentionLabels) == carries
        if isinstance(batch.mentions, MentionLabels):
            named = batch.input_ids[batch.mentions.named.bool()].tolist()
            assert named
            assert all(batches.words[token] in (*SHAPES, "shape") for token in named)
            assert (batch.labels[batch.mentions.named.bool()] == IGNORE).all()


def test_two_that_a_question_names_are_compared(tokenizer: Tokenizer) -> None:
    """The difference at the second says what the answer says; names of different questions are not compared."""
    rng, words = np.random.default_rng(3), naming_tokens(tokenizer)
    columns = {"bigger": (0, 1), "smaller": (0, -1), "left": (1, -1), "right": (1, 1)}
    columns |= {"above": (2, -1), "below": (2, 1)}
    seen = dict.fromkeys([*columns, "later"], 0)
    for _ in range(500):
        scene = sample_clip(rng, "train", CLIPS)
        for question in ask_about(scene, rng, 6, ("position", "size", "events")):
            asked = tokenizer.encode(question.text, add_special=False).ids
            answer = tokenizer.encode(question.answer, add_special=False).ids
            ids = torch.tensor([[*asked, *answer, *asked]])
            spoken = torch.full_like(ids, IGNORE)
            spoken[0, len(asked) : -len(asked)] = torch.tensor(answer)
            labels = mention_labels([scene], ids, spoken, words)
            names = mentions(asked, scene, words)
            assert labels.compared.sum() == 2 * max(0, len(names) - 1)
            if len(names) != 2:
                continue
            token, second = names[1]
            word = next((word for word in columns if f" {word}" in question.text), None)
            if question.answer in ("before", "after"):
                # Asked of the first: does it come before the second, or after it?
                if question.text.startswith("Does"):
                    assert labels.later[0, token] == (question.answer == "before")
                    seen["later"] += 1
            elif word is not None:
                column, sign = columns[word]
                more = sign * labels.differences[0, token, column].item() > 0  # whether the second is
                said = question.answer in ("no", f"the {second.known_as}")
                assert more == said, (question.text, question.answer)
                seen[word] += 1
    assert all(count > 2 for count in seen.values()), seen
