"""What the doctor says: `Finding`, and `Diagnosis`, all of them about one checkpoint."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from filmstrip.diagnostics.doctor.catalogue import CATALOGUE, SEVERITIES, Severity

SHOWN_NAMES = 3
MAX_SUBJECT, MAX_TEXT = 200, 1000  # a hostile header may hold names of megabytes
MAX_OF_A_KIND = 20  # findings of one code and severity that are listed one by one; a broken conversion has hundreds


@dataclass(frozen=True)
class Finding:
    """One thing about a checkpoint. `subject` is the file or tensor, `what` the fact.

    `error`: it does not load, or computes wrong values. `warning`: it loads, and something is off. `note`: good to
    know, nothing to do.
    """

    code: str
    severity: Severity
    subject: str
    what: str
    meaning: str
    remedy: str


@dataclass(frozen=True)
class Diagnosis:
    """What a checkpoint is, in one sentence, everything found, worst first, and the figures behind it."""

    sentence: str
    findings: tuple[Finding, ...]
    facts: dict[str, Any]

    @property
    def sound(self) -> bool:
        """Whether nothing but notes was found."""
        return all(finding.severity == "note" for finding in self.findings)


@dataclass
class Findings:
    """Collects findings while the checks run. Texts that a code always has come from the catalogue."""

    _found: list[Finding] = field(default_factory=list)
    _counts: Counter[tuple[str, Severity]] = field(default_factory=Counter)  # the unlisted too
    _prefix: str = ""

    def within(self, prefix: str) -> "Findings":
        """The same collection, for subjects that lie in a directory inside: `prefix` is put in front of them."""
        return Findings(self._found, self._counts, prefix)

    def add(
        self,
        code: str,
        subject: str,
        what: str,
        *,
        remedy: str | None = None,
        severity: Severity | None = None,
    ) -> None:
        """Report `code` about `subject`; past `MAX_OF_A_KIND` they are only counted."""
        kind = CATALOGUE[code]
        severity = severity or kind.severity
        self._counts[code, severity] += 1
        if self._counts[code, severity] > MAX_OF_A_KIND:
            return
        finding = Finding(
            code=code,
            severity=severity,
            subject=_printable(self._prefix + subject)[:MAX_SUBJECT],
            what=_printable(what[:MAX_TEXT]),
            meaning=kind.meaning,
            remedy=remedy or kind.remedy,
        )
        self._found.append(finding)

    def about(self, subject: str) -> bool:
        """Whether something was found about `subject` already, so that its consequences need no finding."""
        return any(finding.subject == _printable(self._prefix + subject)[:MAX_SUBJECT] for finding in self._found)

    def has(self, code: str) -> bool:
        """Whether anything of this kind was found."""
        return any(finding.code == code for finding in self._found)

    @property
    def errors(self) -> bool:
        """Whether an error was found."""
        return any(finding.severity == "error" for finding in self._found)

    def sorted(self) -> tuple[Finding, ...]:
        """All findings, worst first, otherwise in the order of the checks."""
        return tuple(sorted(self._all(), key=lambda finding: SEVERITIES.index(finding.severity)))

    def _all(self) -> Iterator[Finding]:
        yield from self._found
        for (code, severity), count in self._counts.items():
            if count > MAX_OF_A_KIND:
                kind, what = CATALOGUE[code], f"{count - MAX_OF_A_KIND} more like these"
                yield Finding(code, severity, "others", what, kind.meaning, kind.remedy)


def _printable(text: str) -> str:
    """One line that is safe for a terminal: names in a hostile file may hold anything."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def some(names: list[str]) -> str:
    """The first names of a list, and how many more there are."""
    shown = ", ".join(name[:160] for name in names[:SHOWN_NAMES])
    more = len(names) - SHOWN_NAMES
    return f"{shown} and {more} more" if more > 0 else shown


def counted(number: int, noun: str) -> str:
    """`1 tensor`, `3 tensors`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
