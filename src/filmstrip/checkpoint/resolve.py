"""From the name a user gives to a directory on this machine: bundled model, path, or hub id."""

import importlib.resources
import os
import re
from pathlib import Path

from filmstrip.errors import CheckpointError

BUNDLED = ("tiny",)
CONFIG_FILE = "config.json"
# Only what is read here; code is never fetched, and pickles of weights only where there are no safetensors.
_READ_FILES = re.compile(r"[^/]*\.(json|safetensors|jinja)|tokenizer\.model")
_PICKLES = re.compile(r"pytorch_model[^/]*\.bin")
# The vision towers of the original release's layout; other sub-directories are other formats and training states.
_TOWER_DIRECTORIES = ("image_tower/", "video_tower/")
CONNECT_SECONDS = 3.0

_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")


def resolve(name: str | Path) -> Path:
    """The checkpoint directory that `name` means.

    `tiny` is the bundled model; an existing directory is itself; `owner/name` is downloaded from the Hugging Face hub
    (safetensors, JSON, templates and tokenizer only; pickled weights where there are no safetensors) or taken from its
    cache. Raises `CheckpointError`, one line, when nothing is found; without a network that takes a few seconds at
    most.
    """
    text = str(name)
    if text in BUNDLED:
        return _bundled(text)
    path = Path(os.path.expanduser(text))  # noqa: PTH111 - Path.expanduser raises for an unknown user
    try:
        if text and path.is_dir():
            return path
        if text and path.exists():
            raise CheckpointError(f"{path} is a file; a checkpoint is a directory")
    except OSError as error:  # a name too long, a parent that may not be entered
        raise CheckpointError(f"cannot open {text[:200]!r}: {error.strerror or error}") from error
    if isinstance(name, str) and is_hub_id(text):
        return fetch(text)
    raise CheckpointError(
        f"no checkpoint {text[:200]!r}: not a directory, not a hub id (owner/name), not bundled ({', '.join(BUNDLED)})"
    )


def _bundled(name: str) -> Path:
    path = Path(str(importlib.resources.files("filmstrip"))) / "assets" / name
    if not path.is_dir():
        raise CheckpointError(f"the bundled model {name!r} is missing from this installation ({path})")
    return path


def is_hub_id(name: str) -> bool:
    """Whether `name` has the form owner/name, and is no path."""
    return _HUB_ID.fullmatch(name) is not None and ".." not in name


def fetch(repo_id: str, *, weights: bool = True) -> Path:
    """The newest snapshot of a hub repository, downloaded or from the hub's cache; local directories do not count.

    Without `weights` only `config.json` is downloaded. Raises `CheckpointError`, one line.
    """
    # Imported here: reading a local checkpoint should not wait for an HTTP client.
    from huggingface_hub import HfApi, errors, snapshot_download

    try:
        # snapshot_download asks the hub without a time limit; asking first, with one, finds a dead network in seconds.
        info = HfApi().model_info(repo_id, timeout=CONNECT_SECONDS)
    except errors.GatedRepoError as error:
        raise CheckpointError(
            f"{repo_id} is gated: accept its terms on the hub and log in with `hf auth login`"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise CheckpointError(f"{repo_id} is neither a directory here nor a (public) repository on the hub") from error
    except Exception as error:  # the client's network errors have other classes in each of its versions
        return _cached(repo_id, error)
    names = [file.rfilename for file in info.siblings or ()]
    try:
        directory = snapshot_download(
            repo_id,
            allow_patterns=wanted_files(names) if weights else [CONFIG_FILE],
            etag_timeout=CONNECT_SECONDS,
        )
    except Exception as error:  # as above; also a full disk, a lock, a cache that cannot be written
        raise CheckpointError(f"cannot download {repo_id}: {_one_line(error)}") from error
    return Path(directory)


def wanted_files(names: list[str]) -> list[str]:
    """Those files of a repository that a checkpoint consists of."""
    wanted = []
    for prefix in ("", *_TOWER_DIRECTORIES):
        inside = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
        pickles = not any("/" not in name and name.endswith(".safetensors") for name in inside)
        wanted += [
            prefix + name for name in inside if _READ_FILES.fullmatch(name) or (pickles and _PICKLES.fullmatch(name))
        ]
    return wanted


def _cached(repo_id: str, reason: Exception) -> Path:
    """The newest snapshot in the hub's cache, for when the hub does not answer."""
    from huggingface_hub import errors, snapshot_download

    try:
        return Path(snapshot_download(repo_id, local_files_only=True))
    except (errors.LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            f"{repo_id} is not a directory here nor in the hub's cache, and the hub cannot be reached "
            f"({_one_line(reason)})"
        ) from error


def _one_line(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:200]
