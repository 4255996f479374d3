"""Scoring answers: exact match for short ones, F1 over stated facts for descriptions."""

import re
from dataclasses import replace

from filmstrip.world.facts import COLOUR_NAMES, DIRECTIONS, NUMBERS, SHAPES
from filmstrip.world.questions import Question

_ARTICLES = {"a", "an", "the"}
_COUNT = re.compile(rf"\bthere (?:is|are) ({'|'.join(NUMBERS)}) shapes?\b")
_NAMED = re.compile(
    rf"\b((?:{'|'.join(COLOUR_NAMES)}) (?:{'|'.join(SHAPES)}))\b"
    rf"(?: (moves (?:{'|'.join(DIRECTIONS)})|stays still)\b)?"
)


def normalise(text: str) -> str:
    """Lower case, no punctuation, no articles, single spaces."""
    words = re.sub(r"[^a-z0-9 ]+", " ", text.lower()).split()
    return " ".join(word for word in words if word not in _ARTICLES)


def stated_facts(text: str) -> frozenset[str]:
    """The facts a description states, as `scene_facts` writes them; what it does not understand it passes over.

    A shape named with two different motions states both, so that contradicting oneself does not pay.
    """
    words = normalise(text)
    facts = {f"{number} shapes" for number in _COUNT.findall(words)}
    for name, doing in _NAMED.findall(words):
        facts.add(name)
        if doing:
            facts.add(f"{name} {doing}")
    return frozenset(facts)


def score(question: Question, text: str) -> float:
    """0..1. Exact match after `normalise`; for `describe`, F1 of the facts stated in `text` against the true ones."""
    if not question.facts:
        return float(normalise(text) == normalise(question.answer))
    stated = stated_facts(text)
    right = len(stated & question.facts)
    return 2 * right / (len(stated) + len(question.facts))


def reversed_question(question: Question) -> Question:
    """The same question asked about the clip run backwards, to score answers to reversed frames."""
    facts = stated_facts(question.reversed_answer) if question.facts else question.facts
    return replace(question, answer=question.reversed_answer, reversed_answer=question.answer, facts=facts)
