"""The record of a run: one JSON object a step, always; TensorBoard's format too, where it is installed."""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from filmstrip.checkpoint.atomic import swap_file
from filmstrip.errors import FilmstripError
from filmstrip.training.board import Board

LOG_FILE, SKIPPED_FILE, WARNINGS_FILE = "log.jsonl", "skipped.jsonl", "warnings.jsonl"
ANSWERS_FILE = "answers.txt"

Rows = list[tuple[str, str, str]]  # of sample answers: question, what was said, what is true
_ROW = ("question", "said", "true")


class RunLog:
    """Files of one stage. Lines after step `step` are dropped on opening: they will be made, and logged, again.

    `log.jsonl` has the figures of every step, `skipped.jsonl` one line for each sample that was left out, with its
    reason (of the validation data once), `warnings.jsonl` one for each that was used though something is wrong with it,
    `answers.txt` the sample answers. TensorBoard's files are a copy: when they cannot be written, `note` is told, once,
    and the run goes on without. Everything else raises `LogError` then.
    """

    def __init__(self, directory: Path, step: int, note: Callable[[str], None] = lambda text: None) -> None:
        self.directory, self.note = directory, note
        with _writing(directory):
            directory.mkdir(parents=True, exist_ok=True)
            for name in (LOG_FILE, SKIPPED_FILE, WARNINGS_FILE):
                _drop_after(directory / name, step)
            rounds = [line for line in read_log(directory / LOG_FILE) if "answers" in line]
            if (directory / ANSWERS_FILE).is_file():
                swap_file(directory / ANSWERS_FILE, "".join(map(_answer_text, rounds)).encode())
            # Of what comes again with every pass over the data, or at every checkpoint, one line is enough.
            self._known = {
                (line["sample"], line["reason"])
                for name in (SKIPPED_FILE, WARNINGS_FILE)
                for line in read_log(directory / name)
                if name == WARNINGS_FILE or line.get("validation")
            }
            self._files = {
                name: (directory / name).open("a", encoding="utf-8") for name in (LOG_FILE, SKIPPED_FILE, WARNINGS_FILE)
            }
        self._board: Board | None = None
        with suppress(ImportError):
            self._on_board(lambda: self._open_board(step))

    def step(self, figures: Mapping[str, Any]) -> None:
        """Write the figures of one step, or of the validation after one; `step` is among them."""
        self._line(LOG_FILE, figures)
        board = self._board
        if board is not None:
            numbers = {name: value for name, value in figures.items() if name != "step"}
            self._on_board(lambda: board.add(figures["step"], numbers))

    def skipped(self, step: int, sample: str, reason: str) -> None:
        """Write that a sample was left out of `step`."""
        self._line(SKIPPED_FILE, {"step": step, "sample": sample, "reason": reason})

    def skipped_validation(self, step: int, samples: Sequence[tuple[str, str]]) -> None:
        """Write which samples were left out of the validation after `step`, those that are not known yet."""
        for sample, reason in samples:
            if (sample, reason) not in self._known:
                self._known.add((sample, reason))
                self._line(SKIPPED_FILE, {"step": step, "sample": sample, "reason": reason, "validation": True})

    def warning(self, step: int, sample: str, reason: str) -> None:
        """Write what is wrong with a sample that was used in `step`, when that is not known yet."""
        if (sample, reason) not in self._known:
            self._known.add((sample, reason))
            self._line(WARNINGS_FILE, {"step": step, "sample": sample, "reason": reason})

    def answers(self, step: int, rows: Rows) -> None:
        """Append sample answers."""
        line = {"step": step, "answers": [dict(zip(_ROW, row, strict=True)) for row in rows]}
        with _writing(self.directory), (self.directory / ANSWERS_FILE).open("a", encoding="utf-8") as file:
            file.write(_answer_text(line))
        self._line(LOG_FILE, line)

    def flush(self) -> None:
        """Hand everything to the system: a checkpoint says that the lines up to its step are there."""
        with _writing(self.directory):
            for file in self._files.values():
                file.flush()
        if self._board is not None:
            self._on_board(self._board.flush)

    def close(self) -> None:
        """Close the files. What a full disk refuses only now belongs to steps that a run that goes on does again."""
        for file in self._files.values():
            with suppress(OSError):
                file.close()
        if self._board is not None:
            with suppress(OSError):
                self._board.close()

    def _line(self, name: str, content: Mapping[str, Any]) -> None:
        with _writing(self.directory):
            self._files[name].write(json.dumps(content) + "\n")

    def _open_board(self, step: int) -> None:
        self._board = Board(self.directory / "tensorboard", step)

    def _on_board(self, write: Callable[[], None]) -> None:
        try:
            write()
        except OSError as error:
            self._board = None
            self.note(f"no more figures for TensorBoard: {error.strerror or error}")


def read_log(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a log; a line cut short by a kill is left out."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):  # splitlines cuts at U+2028, too
        with suppress(json.JSONDecodeError):
            rows.append(json.loads(line))
    return rows


class _writing:  # noqa: N801 - used like a function, as `contextlib.suppress` is
    """Turns what the system refuses into one line that says where."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            raise LogError(f"cannot write the log in {self.directory}: {error.strerror or error}") from error


class LogError(FilmstripError):
    """The log cannot be written, most often because the disk is full."""


def _answer_text(line: Mapping[str, Any]) -> str:
    parts = [f"  {row['question']}\n    said: {row['said']}\n    true: {row['true']}\n" for row in line["answers"]]
    return f"step {line['step']}\n{''.join(parts)}\n"


def _drop_after(path: Path, step: int) -> None:
    """Leave the lines up to `step`; none where the run begins, which writes those of step 0 again."""
    if path.is_file():
        kept = [line for line in read_log(path) if 0 < step >= line["step"]]
        swap_file(path, "".join(json.dumps(line) + "\n" for line in kept).encode())
