"""Scoring answers: exact match for short ones, F1 over stated facts for descriptions."""

import re
from dataclasses import dataclass, replace
from itertools import pairwise

from filmstrip.world.facts import CAMERA_WORDS, COLOUR_NAMES, DIRECTIONS, NUMBERS, SHAPES, TIMES
from filmstrip.world.question import Question

_ARTICLES = {"a", "an", "the"}
_COLOUR, _SHAPE = "|".join(COLOUR_NAMES), "|".join(SHAPES)
_NAME = rf"(?:{_COLOUR}) (?:{_SHAPE})"
_MOVES = rf"moves (?:{'|'.join(DIRECTIONS)})|stays still|goes around (?:fast|slowly)|bounces (?:{'|'.join(TIMES)})"
_TURNS = rf"turns (?:{_COLOUR})"
_CAMERA = "|".join(CAMERA_WORDS.values())

_COUNT = re.compile(rf"\bthere (?:is|are) ({'|'.join(NUMBERS)}|no) shapes?\b")
_NAMED = re.compile(rf"\b({_NAME})\b((?: (?:and )?(?:{_MOVES}|{_TURNS})\b)*)")
_DOING = re.compile(rf"\b(?:({_MOVES})|({_TURNS}))\b")
_EVENT = re.compile(rf"\b({_SHAPE}) ({_TURNS}|blinks|jumps|turns around)\b")
_FIRST, _LAST = re.compile(rf"\bfirst comes ({_NAME})\b"), re.compile(rf"\blast ({_NAME})\b")
_SHOT, _NEXT_SHOT = re.compile(rf"\bcamera ({_CAMERA})\b"), re.compile(rf"\bcut it ({_CAMERA})\b")


@dataclass(frozen=True)
class Agreement:
    """How the facts that a text states agree with the true ones, each 0..1."""

    precision: float
    recall: float
    f1: float


def normalise(text: str) -> str:
    """Lower case, no punctuation, no articles, single spaces."""
    words = re.sub(r"[^a-z0-9 ]+", " ", text.lower()).split()
    return " ".join(word for word in words if word not in _ARTICLES)


def stated_facts(text: str) -> frozenset[str]:
    """The facts a description states, as `scene_facts` writes them; what it does not understand it passes over.

    A shape named with two different motions states both; see `agreement` for why that does not pay.
    """
    return frozenset(fact for _, fact in _statements(text))


def agreement(facts: frozenset[str], text: str) -> Agreement:
    """Precision, recall and F1 of the facts stated in `text` against the true `facts`.

    Facts that exclude each other (two motions of one shape, two numbers of shapes) all count as stated and none as
    right, so that stating every possibility is worse than guessing one.
    """
    statements = _statements(text)
    by_slot: dict[str, set[str]] = {}
    for slot, fact in statements:
        by_slot.setdefault(slot or fact, set()).add(fact)
    stated = {fact for _, fact in statements}
    right = sum(len(found) == 1 and found <= facts for found in by_slot.values())
    precision = right / len(stated) if stated else 0.0
    return Agreement(precision, right / len(facts), 2 * right / (len(stated) + len(facts)))


def score(question: Question, text: str) -> float:
    """0..1. Exact match after `normalise`; for `describe`, F1 of the facts stated in `text` against the true ones."""
    if not question.facts:
        return float(normalise(text) == normalise(question.answer))
    return agreement(question.facts, text).f1


def reversed_question(question: Question) -> Question:
    """The same question asked about the clip run backwards, to score answers to reversed frames."""
    facts = stated_facts(question.reversed_answer) if question.facts else question.facts
    return replace(question, answer=question.reversed_answer, reversed_answer=question.answer, facts=facts)


def _statements(text: str) -> set[tuple[str, str]]:
    """(slot, fact): facts of one slot exclude each other; the slot is empty where they do not."""
    words = normalise(text)
    found = {("number", f"{'zero' if number == 'no' else number} shapes") for number in _COUNT.findall(words)}
    for name, doings in _NAMED.findall(words):
        found.add(("", name))
        for moves, turns in _DOING.findall(doings):
            found.add((f"{name} {'moves' if moves else 'turns'}", f"{name} {moves or turns}"))
    events = _EVENT.findall(words)
    found |= {(f"{shape} event", f"{shape} {what}") for shape, what in events}
    for (first, _), (second, _) in pairwise(events):
        found.add((f"order of {' and '.join(sorted((first, second)))}", f"{first} before {second}"))
    for slot, pattern in (("first", _FIRST), ("last", _LAST)):
        found |= {(slot, f"{slot} {name}") for name in pattern.findall(words)}
    found |= {("camera", f"camera {move}") for move in _SHOT.findall(words)}
    after = _NEXT_SHOT.findall(words)
    found |= {("camera after cut", f"camera {move} after cut") for move in after}
    return found | {("", "cut") for _ in after}
