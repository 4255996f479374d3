"""Sizes in bytes as people write them: `16GiB`, `24GB`, `800MiB`, and back."""

import re

from filmstrip.errors import ConfigError

_UNITS = {"": 1, "B": 1}
_UNITS |= {f"{prefix}iB": 1024**power for power, prefix in enumerate("KMGT", start=1)}
_UNITS |= {f"{prefix}B": 1000**power for power, prefix in enumerate("KMGT", start=1)}
_BY_NAME = {name.lower(): size for name, size in _UNITS.items()}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)", re.IGNORECASE)
MAX_BYTES = 2**60


def parse_size(text: str) -> int:
    """Bytes of `16GiB` (1024³), `24GB` (1000³), `800 MiB`, `1024`; case does not matter.

    Raises `ConfigError` for anything else, for nothing at all and for an exbibyte or more.
    """
    match = _SIZE.fullmatch(text.strip())
    unit = _BY_NAME.get(match[2].lower()) if match else None
    if match is None or unit is None:
        raise ConfigError(f"{text!r} is not a size; write 16GiB, 24GB or 800MiB")
    size = int(float(match[1]) * unit) if len(match[1]) < 20 else MAX_BYTES
    if not 0 < size < MAX_BYTES:
        raise ConfigError(f"the size {text!r} is out of range")
    return size


def format_bytes(size: float) -> str:
    """`13.72 GiB`, `507.8 MiB`, `12.0 KiB`, `96 B`; three to four digits."""
    for unit, digits in (("TiB", 2), ("GiB", 2), ("MiB", 1), ("KiB", 1)):
        if abs(size) >= _UNITS[unit]:
            return f"{size / _UNITS[unit]:,.{digits}f} {unit}"
    return f"{int(size)} B"
