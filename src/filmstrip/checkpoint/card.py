"""The model card of a checkpoint that was converted or assembled: what it was made of, and how."""

from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version

CARD_FILE = "README.md"
SOURCE_CARD_FILE = "SOURCE_README.md"  # the card that the source had


def model_card(title: str, sentence: str, rows: Iterable[tuple[str, str]], notes: Sequence[str] = ()) -> bytes:
    """Markdown: a heading, one sentence, a table of two columns, and what is to be known besides."""
    lines = [f"# {_plain(title)}", "", f"{sentence} Written by filmstrip {_version()}.", "", "| | |", "|---|---|"]
    lines += [f"| {_plain(name)} | {_plain(value)} |" for name, value in rows]
    if notes:
        lines += ["", *(f"- {_plain(note)}" for note in notes)]
    return ("\n".join(lines) + "\n").encode()


def _plain(value: str) -> str:
    """A value that may come from outside: one line, without what would break out of a table's cell or be HTML."""
    printable = "".join(character if character.isprintable() else " " for character in value)
    return " ".join(printable.replace("|", "\\|").replace("<", "&lt;").split())[:500]


def _version() -> str:
    try:
        return version("filmstrip")
    except PackageNotFoundError:  # a source tree on the path that was never installed
        return "unknown"
