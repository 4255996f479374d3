"""The vision towers of a checkpoint in the original release's layout: where they are described and where they lie.

The original keeps its towers in repositories of their own (LanguageBind) and names them in `config.json`. Its
published checkpoint holds their weights as well, and its program nevertheless loads those of the repositories over
them; as the towers are frozen in training, both are the same. Here the checkpoint's own weights count whenever it has
any of a tower, because they were saved with the model; a second set is left out, and the report says so.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from filmstrip.checkpoint.fields import Fields
from filmstrip.checkpoint.files import has_weights, open_tensors
from filmstrip.checkpoint.json_file import read_json
from filmstrip.checkpoint.layouts import layouts_of
from filmstrip.checkpoint.parts import Ignored, Part
from filmstrip.checkpoint.pku_config import TOWER_KEYS
from filmstrip.checkpoint.resolve import fetch, is_hub_id, resolve
from filmstrip.checkpoint.rules import Mapped, detect_layout
from filmstrip.checkpoint.tower_config import parse_vision_tower
from filmstrip.config import VisionConfig
from filmstrip.errors import CheckpointError
from filmstrip.links import require_inside

CONFIG_FILE = "config.json"
IN_CHECKPOINT = "the checkpoint itself holds this tower"


@dataclass(frozen=True)
class TowerSources:
    """Where the user says that towers are: directories or hub ids, None for what the checkpoint says."""

    image_tower: str | Path | None = None
    video_tower: str | Path | None = None


@dataclass
class OriginalTowers:
    """The towers' configurations by name, the tensors to load besides the main ones, and those left out."""

    configs: dict[str, VisionConfig] = field(default_factory=dict)
    parts: tuple[Part, ...] = ()
    unused: tuple[Ignored, ...] = ()
    warnings: tuple[str, ...] = ()


def find_towers(directory: Path, config: Fields, main: Part | None, given: TowerSources) -> OriginalTowers:
    """Find both towers' configurations, and their weights where `main` (None: not needed) has none.

    A tower is looked for where the user says, then in `image_tower/` or `video_tower/` inside the directory, then
    under the hub id that `config` names; a path in `config` is not followed, nor is a link in place of the directory
    that leads out. Raises `CheckpointError` or `ConfigError`, one line each.
    """
    towers = OriginalTowers()
    for name, key in TOWER_KEYS.items():
        held = main is None or any(True for _ in _tensors_of(name, main))
        source = _locate(directory, name, config, key, getattr(given, name), weights=not held)
        path = source / CONFIG_FILE
        towers.configs[name] = parse_vision_tower(read_json(path), str(path))
        if not held:
            towers.parts += (_tower_part(source, name),)
        elif has_weights(source) and main is not None:
            _leave_out(towers, source, name)
    return towers


def _tensors_of(tower: str, part: Part) -> Iterator[str]:
    for key in part.files.tensors:
        mapped = part.layout.to_canonical(key)
        if isinstance(mapped, Mapped) and mapped.canonical.startswith(f"{tower}."):
            yield key


def _tower_part(source: Path, name: str) -> Part:
    files = open_tensors(source)
    layout = detect_layout(files.tensors, layouts_of("clip").values(), str(source))
    return Part(files, layout.placed(f"{name}."))


def _leave_out(towers: OriginalTowers, source: Path, name: str) -> None:
    try:
        tensors = open_tensors(source).tensors
    except CheckpointError as error:  # nothing of it is needed
        towers.warnings += (f"{error}; not needed, as {IN_CHECKPOINT}",)
        return
    towers.unused += tuple(Ignored(f"{name}/{key}", IN_CHECKPOINT, info.numel) for key, info in tensors.items())
    towers.warnings += (f"{source}: {len(tensors)} tensors are left out, as {IN_CHECKPOINT}",)


def _locate(directory: Path, name: str, config: Fields, key: str, given: str | Path | None, *, weights: bool) -> Path:
    if given is not None:
        return resolve(given)
    inside = directory / name
    require_inside(inside)
    if (inside / CONFIG_FILE).is_file():
        return inside
    option = f"--{name.replace('_', '-')}"
    named = config.get(key)
    if not isinstance(named, str) or not is_hub_id(named):
        raise config.error(
            key, f"not a hub id, and paths of a checkpoint are not followed: give the tower with {option}"
        )
    try:
        return fetch(named, weights=weights)
    except CheckpointError as error:
        raise CheckpointError(
            f"{directory} has no {name}/{CONFIG_FILE}; give the tower with {option} "
            f"(config.json names {named}: {error})"
        ) from error
