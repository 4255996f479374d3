"""Progress of a training run, as `train` and `experiment` show it."""

import time
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from filmstrip.cli.terminal import errors, note, visible

if TYPE_CHECKING:
    from filmstrip.training.log import Rows
    from filmstrip.training.run import StageStart

_LINE_SECONDS = 10.0  # between two lines of progress where there is no terminal to draw a bar on
_SHOWN_ANSWERS = 2  # of each round of sample answers; the file has all


class TrainingDisplay:
    """Progress of training on standard error: a bar on a terminal, else a line now and then.

    A `quiet` one is never called, and draws no bar.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.bar = Progress(
            TextColumn("{task.fields[stage]}"),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[figures]}"),
            console=errors,
            refresh_per_second=4,
            disable=quiet or not errors.is_terminal,
        )
        self.task = self.bar.add_task("", total=1.0, stage="", figures="")
        self._spoke = 0.0
        self._before: tuple[int, float] | None = None
        self._speed = 0.0

    def stage(self, name: str, start: "StageStart") -> None:
        """Say what begins."""
        length = f"{start.steps:,} steps" if start.steps is not None else "as long as it is given"
        samples = f", {start.samples:,} samples" if start.samples is not None else ""
        after = f", from step {start.step:,}" if start.step else ""
        self.say(f"{name}: {start.trained_parameters:,} of {start.parameters:,} parameters, {length}{samples}{after}")
        self.bar.update(self.task, completed=0.0, stage=name, figures="")
        self._before, self._spoke, self._speed = None, 0.0, 0.0

    def step(self, name: str, progress: float, figures: dict[str, Any]) -> None:
        """Show the figures of a step."""
        if self._before is not None:
            tokens, seconds = figures["tokens"] - self._before[0], figures["seconds"] - self._before[1]
            latest = tokens / max(seconds, 1e-6)
            self._speed = 0.9 * self._speed + 0.1 * latest if self._speed else latest
        self._before = (figures["tokens"], figures["seconds"])
        left = figures["seconds"] / progress * (1 - progress) if progress > 0 else 0.0
        right = next((f"right {100 * figures[key]:.1f} %" for key in ("right", "patch_right") if key in figures), "")
        parts = [
            f"step {figures['step']:,}",
            f"loss {figures['loss']:.4f}",
            right,
            f"rate {figures['rate']:.2e}",
            f"{self._speed:,.0f} tokens/s" if self._speed else "",
            f"{clock(left)} left",
            f"{figures['skipped']} skipped" if figures["skipped"] else "",
        ]
        shown = " · ".join(part for part in parts if part)
        if errors.is_terminal:
            self.bar.update(self.task, completed=progress, figures=shown)
        elif time.monotonic() - self._spoke > _LINE_SECONDS or progress >= 1.0:
            self._spoke = time.monotonic()
            note(f"{name} {100 * progress:.0f} % · {shown}")

    def answers(self, name: str, step: int, rows: "Rows") -> None:
        """Show the first sample answers of a round."""
        for question, said, true in rows[:_SHOWN_ANSWERS]:
            texts = (" ".join(text.split())[:100] for text in (question, said, true))
            self.say("{}, step {:,}: {} -> {} (true: {})".format(name, step, *texts))

    def say(self, text: str) -> None:
        """A line for people."""
        self.bar.console.print(Text(visible(text), style="dim"))


def clock(seconds: float) -> str:
    """Seconds as `2:05` or `1:02:05`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
