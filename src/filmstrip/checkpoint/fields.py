"""Typed access to the values of a configuration file; each failure names the file, the key and what is accepted."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from filmstrip.errors import ConfigError

MAX_SIZE = 2**24  # no width, vocabulary or position table is larger; keeps a hostile file from asking for the moon


class Fields:
    """One object of a configuration. A key that is null counts as absent, as in transformers."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.where = where
        self._values = {key: value for key, value in values.items() if value is not None}

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def get(self, key: str) -> Any:
        """The raw value, or None."""
        return self._values.get(key)

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def error(self, key: str, expected: str) -> ConfigError:
        """The error to raise for an unacceptable value of `key`."""
        shown = repr(self._values.get(key))
        shown = shown if len(shown) <= 80 else shown[:77] + "..."
        name = key if key.isidentifier() else repr(key[:80])
        return ConfigError(f"{self.where}: {name} is {shown}; {expected}")

    def integer(self, key: str, default: int, *, low: int = 1, high: int = MAX_SIZE) -> int:
        """A whole number between `low` and `high`, or `default` when absent."""
        value = self._values.get(key, default)
        if type(value) is not int or not low <= value <= high:
            raise self.error(key, f"expected a whole number from {low} to {high}")
        return value

    def optional_integer(self, key: str, *, low: int = 0) -> int | None:
        """A whole number, or None when absent."""
        return self.integer(key, low, low=low) if key in self else None

    def number(self, key: str, default: float) -> float:
        """A number, or `default` when absent."""
        value = self._values.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 1e30:
            raise self.error(key, "expected a number")
        return float(value)

    def required_number(self, key: str, because: str) -> float:
        """A number that must be there."""
        if key not in self:
            raise ConfigError(f"{self.where}: {key} is missing; {because} needs it")
        return self.number(key, 0.0)

    def boolean(self, key: str, default: bool) -> bool:
        """true or false, or `default` when absent."""
        value = self._values.get(key, default)
        if not isinstance(value, bool):
            raise self.error(key, "expected true or false")
        return value

    def choice(self, key: str, default: str, supported: Collection[str]) -> str:
        """One of the supported strings, or `default` when absent."""
        value = self._values.get(key, default)
        if not isinstance(value, str) or value not in supported:
            raise self.error(key, f"supported: {', '.join(supported)}")
        return value

    def section(self, key: str) -> "Fields | None":
        """The object under `key`, or None when absent."""
        value = self._values.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.error(key, "expected an object")
        return Fields(value, f"{self.where}, {key}")

    def refuse(self, unsupported: Mapping[str, str]) -> None:
        """Raise for a key that would change the computation and is not supported; values say what is."""
        for key, supported in unsupported.items():
            if self._values.get(key):
                raise self.error(key, supported)
