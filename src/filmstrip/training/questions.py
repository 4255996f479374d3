"""Questions with true answers from a file, in the forms that benchmarks of Video-LLaVA come in."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filmstrip.training.records import DataError, RawRecord, media_path, parse_record, read_records

_ENDINGS = ("", ".mp4", ".avi", ".mov", ".mkv", ".webm")  # a benchmark's `video_name` may lack its own


@dataclass(frozen=True)
class AskedQuestion:
    """One question. `problem` says why it cannot be asked; then there are no media."""

    id: str
    question: str
    answer: str
    media: tuple[Path, ...] = ()
    options: tuple[str, ...] = ()
    problem: str = ""

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
    and `options` to choose from. Ids that come twice get a number. Raises `DataError` for a file that cannot be read.
    """
    asked: list[AskedQuestion] = []
    seen: dict[str, int] = {}
    for raw in read_records([path], media_root):
        for question in _questions(raw):
            count = seen[question.id] = seen.get(question.id, 0) + 1
            name = question.id if count == 1 else f"{question.id}/{count}"
            asked.append(AskedQuestion(**{**vars(question), "id": name}))
    return asked


def _questions(raw: RawRecord) -> Iterator[AskedQuestion]:
    if not isinstance(raw.values, dict) or "conversations" in raw.values:
        yield from _of_conversation(raw)
        return
    values = raw.values
    name = str(values.get("question_id", raw.name))
    question, answer, options = values.get("question"), values.get("answer", ""), values.get("options") or ()
    try:
        if not isinstance(question, str) or not question.strip():
            raise DataError("there is no question")
        if not isinstance(options, list | tuple) or len(options) > 26:
            raise DataError("options are a list of up to 26 texts")
        media = tuple(_media(raw))
    except DataError as error:
        yield AskedQuestion(name, str(question), str(answer), problem=str(error))
        return
    yield AskedQuestion(name, question.strip(), str(answer), media, tuple(map(str, options)))


def _of_conversation(raw: RawRecord) -> Iterator[AskedQuestion]:
    try:
        record = parse_record(raw)
    except DataError as error:
        yield AskedQuestion(raw.name, "", "", problem=str(error))
        return
    paths = tuple(path for _, path in record.media)
    spoken = [turn for turn in record.turns if turn.role != "system"]
    for asked, answered in zip(spoken[::2], spoken[1::2], strict=False):
        yield AskedQuestion(raw.name, asked.text, answered.text, paths)


def _media(raw: RawRecord) -> Iterator[Path]:
    for key in ("image", "video", "video_name"):
        named: Any = raw.values.get(key)
        if named is None or named == "":
            continue
        for name in named if isinstance(named, list) else [named]:
            yield _find(raw.root, name) if key == "video_name" else media_path(raw.root, name)


def _find(root: Path, name: Any) -> Path:
    for ending in _ENDINGS:
        try:
            return media_path(root, f"{name}{ending}")
        except DataError as error:
            if "missing" not in str(error):
                raise
    raise DataError(f"missing file {json.dumps(str(name)[:200])} with any of the endings of videos")
