"""The record of a run: one JSON object a step, always; TensorBoard's format too, where it is installed."""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from filmstrip.errors import FilmstripError

LOG_FILE, SKIPPED_FILE, ANSWERS_FILE = "log.jsonl", "skipped.jsonl", "answers.txt"


class RunLog:
    """Files of one stage. Lines after step `step` are dropped on opening: they will be made, and logged, again.

    `log.jsonl` has the figures of every step, `skipped.jsonl` one line for each sample that was left out, with its
    reason, `answers.txt` the sample answers.
    """

    def __init__(self, directory: Path, step: int) -> None:
        self.directory = directory
        with _writing(directory):
            directory.mkdir(parents=True, exist_ok=True)
            for name in (LOG_FILE, SKIPPED_FILE):
                _drop_after(directory / name, step)
            self._log = (directory / LOG_FILE).open("a", encoding="utf-8")
            self._skipped = (directory / SKIPPED_FILE).open("a", encoding="utf-8")
        self._board = _tensorboard(directory / "tensorboard", step)

    def step(self, figures: Mapping[str, Any]) -> None:
        """Write the figures of one step; `step` is among them."""
        with _writing(self.directory):
            self._log.write(json.dumps(figures) + "\n")
        if self._board is not None:
            for name, value in figures.items():
                if isinstance(value, int | float) and name != "step":
                    self._board.add_scalar(name, value, figures["step"])

    def skipped(self, step: int, sample: str, reason: str) -> None:
        """Write that a sample was left out of `step`."""
        with _writing(self.directory):
            self._skipped.write(json.dumps({"step": step, "sample": sample, "reason": reason}) + "\n")

    def answers(self, step: int, rows: list[tuple[str, str, str]]) -> None:
        """Append sample answers: question, what was said, what is true."""
        lines = [
            f"step {step}",
            *(f"  {question}\n    said: {said}\n    true: {true}" for question, said, true in rows),
        ]
        with _writing(self.directory), (self.directory / ANSWERS_FILE).open("a", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n\n")
        self.step(
            {"step": step, "answers": [dict(zip(("question", "said", "true"), row, strict=True)) for row in rows]}
        )

    def flush(self) -> None:
        """Have everything on the disk: a checkpoint says that the lines up to its step are there."""
        with _writing(self.directory):
            self._log.flush()
            self._skipped.flush()
        if self._board is not None:
            self._board.flush()

    def close(self) -> None:
        """Close the files."""
        with _writing(self.directory):
            self._log.close()
            self._skipped.close()
        if self._board is not None:
            self._board.close()


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


def _drop_after(path: Path, step: int) -> None:
    if not path.is_file():
        return
    kept = [line for line in read_log(path) if line["step"] <= step]
    partial = path.with_suffix(".partial")
    partial.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
    partial.replace(path)


def _tensorboard(directory: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    # Events after `purge_step` of an earlier run in this directory are hidden by TensorBoard.
    return SummaryWriter(str(directory), purge_step=step + 1 if step else None)
