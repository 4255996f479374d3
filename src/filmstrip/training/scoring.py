"""Scores of short answers, without a judge: each is a plain rule, named as benchmarks name it."""

import re
import string
from typing import Literal, get_args

Metric = Literal["exact", "contains", "choice", "open"]
METRICS: tuple[str, ...] = get_args(Metric)

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_SAID = r"\b(?i:answer|option|choice)\s*(?i:is\b)?\s*:?\s*[(*]*"
# "B", "(b)", "**B**", "B.", "B: a dog"; "The answer is B", "Answer: (b).", "The correct option is B".
_LETTER = re.compile(rf"^\s*[(*]*([A-Za-z])[)*]*\s*(?:[.:)]|$)|{_SAID}([A-Za-z])[)*]*\s*(?=[.,:;]|$)")
# "The answer is B because ...": after options were looked for, since "The answer is a dog" begins with an article.
_LETTER_AND_MORE = re.compile(rf"{_SAID}([A-Z])\b")


def score(metric: Metric, truth: str, said: str, options: tuple[str, ...] = ()) -> float | None:
    """1 for right, 0 for wrong, None where a person or a model has to judge (`open`).

    ==========  ===============================================================================================
    `exact`     the same words, but for case, punctuation and articles
    `contains`  the true words stand in the answer, in a row
    `choice`    the letter the answer names is the true one, or its text is the true option's and no other's
    `open`      not scored
    ==========  ===============================================================================================

    Nothing is right where the true answer itself says nothing by these rules (`has_truth`).
    """
    if metric == "open":
        return None
    if not has_truth(metric, truth, options):
        return 0.0
    if metric == "exact":
        return float(normalise(said) == normalise(truth))
    if metric == "contains":
        return float(f" {normalise(truth)} " in f" {normalise(said)} ")
    return float(chosen(said, options) == chosen(truth, options))


def has_truth(metric: Metric, truth: str, options: tuple[str, ...] = ()) -> bool:
    """Whether an answer can be right at all: the true one has words or, for `choice`, names one option."""
    if metric == "open":
        return True
    return bool(chosen(truth, options) if metric == "choice" else normalise(truth))


def normalise(text: str) -> str:
    """Words alone: lower case, no punctuation, no articles, single blanks."""
    words = _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()
    return " ".join(words) or text.lower().translate(_PUNCTUATION).strip()


def chosen(text: str, options: tuple[str, ...] = ()) -> str:
    """The letter of the option that `text` names, "" for none: by its letter, or by the words of one option alone."""
    letter = _named_by(_LETTER, text, options)
    if letter:
        return letter
    said = f" {normalise(text)} "
    named = [index for index, option in enumerate(options) if f" {normalise(option)} " in said]
    exact = [index for index in named if normalise(options[index]) == said.strip()]
    hits = exact or named
    return chr(ord("A") + hits[0]) if len(hits) == 1 else _named_by(_LETTER_AND_MORE, text, options)


def _named_by(pattern: re.Pattern[str], text: str, options: tuple[str, ...]) -> str:
    match = pattern.search(text)
    letter = next(filter(None, match.groups())).upper() if match else ""
    return letter if letter and (not options or ord(letter) - ord("A") < len(options)) else ""
