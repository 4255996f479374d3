"""filmstrip: Video-LLaVA from scratch in PyTorch.

    import filmstrip

    assistant = filmstrip.load("tiny")
    print(assistant.ask("clip.mp4", "Which way does the red square move?").text)

Importing this package is cheap: PyTorch is imported by the first use of `load`.
"""

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from filmstrip.api import Answer, Assistant, Chat, load

try:
    __version__ = version("filmstrip")
except PackageNotFoundError:  # a source tree on the path that was never installed
    __version__ = "unknown"

__all__ = ["Answer", "Assistant", "Chat", "__version__", "load"]


def __getattr__(name: str) -> Any:
    """Import the front door when it is first used."""
    if name in {"Answer", "Assistant", "Chat", "load"}:
        from filmstrip import api

        return getattr(api, name)
    raise AttributeError(f"module 'filmstrip' has no attribute {name!r}")
