"""The exceptions a user may see. Each carries one clear line; the command line prints it and exits with 2.

Anything that is not a `FilmstripError` is a bug in this program.
"""


class FilmstripError(Exception):
    """Base of every error caused by input: a file, an option, a checkpoint, a prompt."""


class MediaError(FilmstripError):
    """An image or video that cannot be opened, decoded or accepted."""


class CheckpointError(FilmstripError):
    """A checkpoint directory or file that cannot be read, is incomplete or contradicts its configuration."""


class ConfigError(FilmstripError):
    """A configuration value that is unknown, missing or out of range."""


class PromptError(FilmstripError):
    """A prompt whose placeholders and media disagree, or that cannot be rendered."""
