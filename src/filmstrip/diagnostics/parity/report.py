"""What a comparison found, as data."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from filmstrip.diagnostics.activations import Difference

Verdict = Literal["equal", "rounding", "introduced", "inherited", "absent"]


@dataclass(frozen=True)
class Step:
    """One step of the way from a file to tokens.

    `introduced` is the difference when our step reads the reference's input, `total` that of the two whole runs; the
    `_double` ones are the same in float64. A difference is None where the two cannot be subtracted; `problem` then says
    why. Steps before the model have no float64 run: their differences are exact or grey levels.
    """

    number: int
    site: str
    verdict: Verdict
    total: Difference | None = None
    introduced: Difference | None = None
    total_double: Difference | None = None
    introduced_double: Difference | None = None
    problem: str = ""

    @property
    def stage(self) -> str:
        """The part of the program that the step belongs to."""
        return self.site.split(".")[0]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        content: dict[str, Any] = {
            "number": self.number,
            "stage": self.stage,
            "site": self.site,
            "verdict": self.verdict,
            "problem": self.problem or None,
        }
        for name in ("total", "introduced", "total_double", "introduced_double"):
            content[name] = difference_to_dict(getattr(self, name))
        return content


@dataclass(frozen=True)
class Fault:
    """A step that introduces a difference, and what was found inside it.

    `module` is the first part of our model whose result differs although its input does not (or the site itself when
    it has no parts), `their_module` its name on the other side; `within` the difference there. `hints` say what the
    numbers look like: weights that are another's, an epsilon, an order of frames.
    """

    step: Step
    module: str
    their_module: str = ""
    within: Difference | None = None
    hints: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        return {
            "step": self.step.number,
            "stage": self.step.stage,
            "site": self.step.site,
            "module": self.module,
            "their_module": self.their_module or None,
            "within": difference_to_dict(self.within),
            "hints": list(self.hints),
        }


@dataclass(frozen=True)
class ParityReport:
    """A whole comparison. `faults` are the steps that introduce a difference, in order.

    `double_run` says whether a float64 run was needed. `texts` are the answers of both, row by row.
    """

    model: str
    against: str
    dtype: str
    question: str
    media: tuple[str, ...]
    steps: tuple[Step, ...]
    faults: tuple[Fault, ...]
    notes: tuple[str, ...]
    double_run: bool
    texts: tuple[tuple[str, str], ...] = field(default=())

    @property
    def verdict(self) -> str:
        """One sentence for people."""
        if self.faults:
            fault = self.faults[0]
            where = fault.module if fault.module == fault.step.site else f"{fault.module} (step {fault.step.site})"
            return f"difference introduced at {where}"
        compared = [step for step in self.steps if step.verdict != "absent"]
        left = f" ({len(self.steps) - len(compared)} could not be compared)" if len(compared) < len(self.steps) else ""
        noisy = [step for step in compared if step.verdict != "equal"]
        if not noisy:
            return f"equal: {len(compared)} steps agree to the last bit{left}"
        worst = max(noisy, key=lambda step: step.total.relative if step.total else 0.0)
        size = f", at most {worst.total.relative:.1e} of the value range, at {worst.site}" if worst.total else ""
        return f"rounding noise in {len(noisy)} of {len(compared)} steps{size}; the rest is equal{left}"

    @property
    def exit_code(self) -> int:
        """0: equal or rounding, 1: a difference was introduced."""
        return 1 if self.faults else 0

    def to_dict(self) -> dict[str, Any]:
        """What `filmstrip parity --json` prints."""
        return {
            "verdict": self.verdict,
            "same": not self.faults,
            "model": self.model,
            "against": self.against,
            "dtype": self.dtype,
            "float64_run": self.double_run,
            "media": list(self.media),
            "question": self.question,
            "answers": [{"ours": ours, "theirs": theirs} for ours, theirs in self.texts],
            "faults": [fault.to_dict() for fault in self.faults],
            "steps": [step.to_dict() for step in self.steps],
            "notes": list(self.notes),
        }


def number_steps(steps: Sequence[Step]) -> tuple[Step, ...]:
    """The steps with their numbers, from 1."""
    return tuple(replace(step, number=number) for number, step in enumerate(steps, start=1))


def difference_to_dict(difference: Difference | None) -> dict[str, Any] | None:
    """A difference as plain data; infinities as None, which JSON can hold."""
    if difference is None:
        return None
    return {
        "max_abs": difference.max_abs if difference.finite else None,
        "relative": difference.relative if difference.finite else None,
        "finite": difference.finite,
        "index": list(difference.index),
        "ours": difference.ours if difference.ours - difference.ours == 0 else None,
        "theirs": difference.theirs if difference.theirs - difference.theirs == 0 else None,
    }
