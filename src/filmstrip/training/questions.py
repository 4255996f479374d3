"""Questions with true answers from a file, in the forms that benchmarks of Video-LLaVA come in."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count, zip_longest
from pathlib import Path
from typing import Any

from filmstrip.config import MediaKind
from filmstrip.training.records import (
    DataError,
    RawRecord,
    make_turn,
    media_path,
    parse_record,
    read_records,
    require_placeholders,
)

PRED_KEYS = {"Q": "pred", "Q1": "pred1", "Q2": "pred2"}
"""Where a question of Video-ChatGPT's benchmarks stands in its record, and where its judges look for the answer."""

_ENDINGS = ("", ".mp4", ".avi", ".mov", ".mkv", ".webm")  # a benchmark's `video_name` may lack its own
_NOT_IN_FILE_NAMES = re.compile(r"[/\x00-\x1f]+")
_MAX_NAME_BYTES = 200  # of a file name, which systems allow 255 of, with an ending and a number


@dataclass(frozen=True)
class AskedQuestion:
    """One question. `problem` says why it cannot be asked; then there are no media.

    `record` and `pred_key` are for the judges of Video-ChatGPT's benchmarks: the record that it comes from, and the key
    that its answer goes under there.
    """

    id: str
    question: str
    answer: str
    media: tuple[Path, ...] = ()
    options: tuple[str, ...] = ()
    problem: str = ""
    record: RawRecord | None = None
    pred_key: str = "pred"

    @property
    def prompt(self) -> str:
        """The words that are asked: with options, each on a line with its letter, and what to answer with."""
        if not self.options:
            return self.question
        lines = [f"{chr(ord('A') + index)}. {option}" for index, option in enumerate(self.options)]
        return "\n".join([self.question, *lines, "Answer with the option's letter from the given choices directly."])


def read_questions(path: Path, media_root: Path | None = None) -> list[AskedQuestion]:
    """Every question of a file, those that cannot be asked included.

    A record is a conversation in LLaVA's form, each of whose questions is asked on its own about its media, or flat:
    `question`, `answer`, an id (`id` or `question_id`), `image` or `video` (or `video_name`, without its ending too),
    and `options` to choose from; or one of Video-ChatGPT's: `Q`, or `Q1` and `Q2`, `A`, `video_name`.

    Judges name a file by each id, so ids become file names, and one that comes again gets a number (`7_2`) that makes
    it one of its own. Raises `DataError` for a file that cannot be read.
    """
    asked = [question for raw in read_records([path], media_root) for question in _questions(raw)]
    taken = {question.id for question in asked}
    seen: Counter[str] = Counter()
    named = []
    for question in asked:
        name = question.id
        seen[name] += 1
        if seen[name] > 1:
            numbered = (f"{name}_{number}" for number in count(seen[name]))
            name = next(free for free in numbered if free not in taken)
            taken.add(name)
        named.append(replace(question, id=name))
    return named


def _questions(raw: RawRecord) -> Iterator[AskedQuestion]:
    if not isinstance(raw.values, dict) or "conversations" in raw.values:
        yield from _of_conversation(raw)
        return
    values = raw.values
    keys = [key for key in PRED_KEYS if key in values]
    for key in keys:
        yield replace(_flat(raw, values[key], values.get("A")), record=raw, pred_key=PRED_KEYS[key])
    if not keys:
        yield _flat(raw, values.get("question"), values.get("answer"))


def _flat(raw: RawRecord, question: Any, answer: Any) -> AskedQuestion:
    name = _file_name(str(raw.values.get("question_id", raw.name)))
    truth = "" if answer is None else str(answer)
    options = raw.values.get("options") or ()
    try:
        turn = make_turn("user", question if isinstance(question, str) else "")
        if not turn.text:
            raise DataError("there is no question")
        if isinstance(answer, list | dict):
            raise DataError("the true answer is not one text")
        if not isinstance(options, list | tuple) or len(options) > 26:
            raise DataError("options are a list of up to 26 texts")
        media = tuple(_media(raw))
        if turn.media:  # they may be left out where there is one question alone
            require_placeholders(turn.media, media)
    except DataError as error:
        return AskedQuestion(name, str(question), truth, problem=str(error))
    return AskedQuestion(name, turn.text, truth, tuple(path for _, path in media), tuple(map(str, options)))


def _file_name(name: str) -> str:
    short = name.encode("utf-8", "replace")[:_MAX_NAME_BYTES].decode("utf-8", "ignore")
    return _NOT_IN_FILE_NAMES.sub("_", short)


def _of_conversation(raw: RawRecord) -> Iterator[AskedQuestion]:
    """Each of the user's turns, with the assistant's next one as its true answer, if there is one."""
    name = _file_name(raw.name)
    try:
        record = parse_record(raw, needs_answer=False)
    except DataError as error:
        yield AskedQuestion(name, "", "", problem=str(error))
        return
    paths = tuple(path for _, path in record.media)
    spoken = [turn for turn in record.turns if turn.role != "system"]
    for turn, following in zip_longest(spoken, spoken[1:]):
        if turn.role == "user" and turn.text:
            truth = following.text if following is not None and following.role == "assistant" else ""
            yield AskedQuestion(name, turn.text, truth, paths)


def _media(raw: RawRecord) -> Iterator[tuple[MediaKind, Path]]:
    for key in ("image", "video", "video_name"):
        named: Any = raw.values.get(key)
        if named is None or named == "":
            continue
        for name in named if isinstance(named, list) else [named]:
            path = _find(raw.root, name) if key == "video_name" else media_path(raw.root, name)
            yield "image" if key == "image" else "video", path


def _find(root: Path, name: Any) -> Path:
    for ending in _ENDINGS:
        try:
            return media_path(root, f"{name}{ending}")
        except DataError as error:
            if "missing" not in str(error):
                raise
    raise DataError(f"missing file {json.dumps(str(name)[:200])} with any of the endings of videos")
