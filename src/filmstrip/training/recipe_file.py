"""Recipes on disk: YAML in, `Recipe` out, with `--set` changes in between."""

import fnmatch
import json
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import asdict, fields, is_dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from filmstrip.checkpoint.json_file import read_bounded
from filmstrip.checkpoint.resolve import BUNDLED
from filmstrip.config.checks import require_choice
from filmstrip.errors import CheckpointError, ConfigError
from filmstrip.training.recipe import Recipe, ScheduleRecipe, StageRecipe
from filmstrip.training.settings import build

MAX_RECIPE_BYTES = 2**20


def shipped_recipes() -> dict[str, Path]:
    """The recipes that come with the package, by name: `tiny`, `fusion/keep-all`, ..."""
    folder = Path(str(files("filmstrip"))) / "recipes"
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.yaml"))}


def find_recipe(name: str) -> Path:
    """The file that `name` means: a file, or a shipped recipe as `tiny`, `tiny.yaml` or `recipes/tiny.yaml`.

    Raises `ConfigError` naming the nearest shipped one.
    """
    path = Path(name)
    if path.is_file():
        return path
    shipped = shipped_recipes()
    wanted = _shipped_name(name)
    if wanted in shipped:
        return shipped[wanted]
    folders = {Path(known).parent for known in shipped}
    if path.parent not in folders | {Path("recipes", folder) for folder in folders}:
        raise ConfigError(f"{name}: no such recipe file")
    require_choice("recipe", wanted, shipped)
    raise AssertionError  # require_choice has raised


def find_recipes(names: Sequence[str]) -> list[Path]:
    """The files that `names` mean, each once. A pattern with `*` that no file here matches, which a shell passes on as
    it is, is one of shipped recipes. Raises `ConfigError` for a name or pattern that means nothing.
    """
    found: list[Path] = []
    for name in names:
        if not set("*?[") & set(name) or Path(name).is_file():
            found.append(find_recipe(name))
            continue
        here = [] if Path(name).is_absolute() else sorted(path for path in Path().glob(name) if path.is_file())
        shipped = shipped_recipes()
        matching = here or [shipped[known] for known in fnmatch.filter(shipped, _shipped_name(name))]
        if not matching:
            raise ConfigError(f"{name}: no recipe matches; shipped are {', '.join(shipped)}")
        found += matching
    return list(dict.fromkeys(found))


def _shipped_name(name: str) -> str:
    return Path(name).as_posix().removeprefix("recipes/").removesuffix(".yaml")


def read_recipe(path: Path, changes: Sequence[str] = ()) -> Recipe:
    """The recipe in `path`, with `changes` (`key=value`, see `change`) made to it.

    A recipe may consist of `base`, a recipe beside it or a shipped one, and `set`, changes to that by dotted path.
    Raises `ConfigError`, one line, for whatever is wrong.
    """
    values = _values(path, ())
    for text in changes:
        values = change(values, text)
    return _with_absolute_paths(build(Recipe, values, str(path)))


def changed_recipe(recipe: Recipe, changes: Sequence[str]) -> Recipe:
    """A recipe with `key=value` changes (see `change`)."""
    values = recipe_values(recipe)
    for text in changes:
        values = change(values, text)
    return _with_absolute_paths(build(Recipe, values, "the recipe"))


def _values(path: Path, below: tuple[Path, ...]) -> dict[str, Any]:
    """The settings in a file, those of its base included; `below` are the recipes that are based on this one."""
    values = _parse(_read(path), str(path))
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a recipe is a list of settings by name")
    if "base" not in values:
        return values
    others = [key for key in values if key not in ("base", "set")]
    if others:
        raise ConfigError(f"{path}: a recipe with a base has `base` and `set` alone, not {others[0]!r}")
    changes = values.get("set") or {}
    if not isinstance(values["base"], str) or not isinstance(changes, dict):
        raise ConfigError(f"{path}: base is the name of a recipe, set has settings by dotted path")
    beside = path.parent / values["base"]
    base = beside if beside.is_file() else find_recipe(values["base"])
    if base.resolve() in (*below, path.resolve()):
        raise ConfigError(f"{path} is based on itself")
    based = _values(base, (*below, path.resolve()))
    for key, value in changes.items():
        based = _set(based, str(key), value, f"{path}, set")
    return based


def change(values: dict[str, Any], text: str) -> dict[str, Any]:
    """`values` of a recipe with one `key=value` applied; the value is YAML.

    The key is a dotted path of settings (`checkpoints.keep`), of a stage's settings behind the stage's name
    (`language.optimizer.learning_rate`), or, where there is one stage only, of that stage's. A stage's name alone with
    the value null leaves that stage out.
    """
    key, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"--set takes key=value, not {text!r}")
    return _set(values, key.strip(), _parse(value, f"--set {key}"), "--set")


def _set(values: dict[str, Any], key: str, value: Any, where: str) -> dict[str, Any]:
    """A copy of `values` with the setting `key`, a dotted path, changed."""
    parts = key.split(".")
    if not all(parts):
        raise ConfigError(f"{where} takes key=value, not {key!r}")
    changed = deepcopy(values)
    listed = changed.get("stages")
    stages = {
        str(stage.get("name")): stage
        for stage in (listed if isinstance(listed, list) else ())
        if isinstance(stage, dict)
    }
    if key in stages and value is None:
        return changed | {"stages": [stage for stage in changed["stages"] if stage is not stages[key]]}
    target: Any = changed
    if parts[0] in stages and len(parts) > 1:
        target, parts = stages[parts[0]], parts[1:]
    elif parts[0] not in Recipe.__dataclass_fields__:
        if len(stages) != 1 or parts[0] not in StageRecipe.__dataclass_fields__:
            known = [field.name for field in fields(Recipe)] + list(stages)
            require_choice("setting", parts[0], known)
        target = next(iter(stages.values()))
    for part in parts[:-1]:
        inner = target.get(part)
        target[part] = {} if inner is None else inner
        target = target[part]
        if not isinstance(target, dict):
            raise ConfigError(f"{where} {key}: {part} has no settings inside")
    target[parts[-1]] = value
    return changed


def recipe_values(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain data, as `build` reads it."""
    return json.loads(json.dumps(asdict(recipe)))


def recipe_text(recipe: Recipe) -> str:
    """The whole recipe as YAML, each setting with its meaning."""
    return "".join(f"{line}\n" for line in _lines(recipe))


def _lines(item: Any, indent: str = "") -> Iterator[str]:
    for part in fields(item):
        value, meaning = getattr(item, part.name), part.metadata.get("help", "")
        yield f"{indent}# {meaning}"
        if is_dataclass(value):
            yield f"{indent}{part.name}:"
            yield from _lines(value, indent + "  ")
        elif isinstance(value, tuple) and value and is_dataclass(value[0]):
            yield f"{indent}{part.name}:"
            for entry in value:
                first, *rest = _lines(entry, indent + "    ")
                yield f"{indent}  - {first.strip()}"
                yield from rest
        else:
            plain = list(value) if isinstance(value, tuple) else value
            yield f"{indent}{part.name}: {json.dumps(plain)}"


def limit_minutes(recipe: Recipe, minutes: float, *, begun: bool = False) -> Recipe:
    """The recipe with `minutes` of wall time in all, divided among the stages by their `schedule.usual_minutes`.

    `least_minutes` raises a stage's part, `skip_below` leaves it out, and where `batch.least` allows it batches shrink
    with the time. A run that has `begun` keeps its stages and batches. Raises `ConfigError` when no stage is left.
    """
    if not 0 < minutes < 1e6:
        raise ConfigError(f"--minutes must be a number above zero, not {minutes}")
    stages = [stage for stage in recipe.stages if begun or (stage.schedule.skip_below or 0) <= minutes]
    if not stages:
        longest = min(stage.schedule.skip_below or 0 for stage in recipe.stages)
        raise ConfigError(f"--minutes {minutes:g} leaves out every stage of this recipe; give {longest:g} or more")
    shares = _divide(minutes, [stage.schedule for stage in stages])
    shortened = [_shorten(stage, own, shrink=not begun) for stage, own in zip(stages, shares, strict=True)]
    return replace(recipe, stages=tuple(shortened))


def _divide(minutes: float, schedules: Sequence[ScheduleRecipe]) -> list[float]:
    """Each stage's minutes: its least, where its part of what others of their least leave is smaller."""
    even = minutes / len(schedules)
    least = [min(schedule.least_minutes or 0, even) for schedule in schedules]
    own: dict[int, float] = {}
    while True:
        rest = minutes - sum(own.values())
        total = sum(schedule.usual_minutes for i, schedule in enumerate(schedules) if i not in own)
        parts = {i: rest * one.usual_minutes / total for i, one in enumerate(schedules) if i not in own}
        short = {i: least[i] for i, part in parts.items() if part < least[i]}
        if not short:
            return [(own | parts)[i] for i in range(len(schedules))]
        own |= short


def _shorten(stage: StageRecipe, minutes: float, *, shrink: bool) -> StageRecipe:
    schedule, batch = stage.schedule, stage.batch
    if shrink and batch.least is not None:
        size = round(batch.size * min(1.0, minutes / schedule.usual_minutes))
        batch = replace(batch, size=max(batch.least, size))
    return replace(stage, batch=batch, schedule=replace(schedule, steps=None, epochs=None, minutes=minutes))


def limit_steps(recipe: Recipe, steps: int) -> Recipe:
    """The recipe with every stage `steps` optimizer steps long."""
    stages = [
        replace(stage, schedule=replace(stage.schedule, steps=steps, epochs=None, minutes=None))
        for stage in recipe.stages
    ]
    return replace(recipe, stages=tuple(stages))


def _with_absolute_paths(recipe: Recipe) -> Recipe:
    """Paths made absolute, so that a run can be continued from another directory.

    Checkpoints may also be bundled models and hub ids: only what is a directory here is a path.
    """

    def place(name: str) -> str:
        return str(Path(name).expanduser().absolute())

    def place_checkpoint(name: str | None) -> str | None:
        return place(name) if name and name not in BUNDLED and Path(name).expanduser().is_dir() else name

    model = replace(
        recipe.model,
        checkpoint=place_checkpoint(recipe.model.checkpoint),
        towers=place_checkpoint(recipe.model.towers),
    )
    stages = []
    for stage in recipe.stages:
        data = replace(
            stage.data,
            files=tuple(place(name) for name in stage.data.files),
            validation=tuple(place(name) for name in stage.data.validation),
            media_root=None if stage.data.media_root is None else place(stage.data.media_root),
        )
        stages.append(replace(stage, data=data))
    return replace(recipe, model=model, stages=tuple(stages))


def _read(path: Path) -> str:
    try:
        return read_bounded(path, MAX_RECIPE_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text") from error
    except CheckpointError as error:
        raise ConfigError(str(error)) from error


def _parse(text: str, where: str) -> Any:
    yaml = _yaml()

    class Loader(yaml.SafeLoader):  # type: ignore[misc, name-defined]
        """Refuses a key that is there twice, of which PyYAML silently takes the last."""

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            names = [str(self.construct_object(key, deep=True)) for key, _ in node.value]
            for name in names:
                if names.count(name) > 1:
                    raise ConfigError(f"{where} names the setting {name!r} twice")
            return super().construct_mapping(node, deep)

    try:
        return yaml.load(text, Loader)
    except (yaml.YAMLError, RecursionError, ValueError, TypeError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f" (line {mark.line + 1})" if mark else ""
        problem = getattr(error, "problem", None) or str(error).split("\n", maxsplit=1)[0]
        raise ConfigError(f"{where} is not valid YAML: {problem}{place}") from error


def _yaml() -> Any:
    try:
        import yaml
    except ImportError as error:
        raise ConfigError("recipes are YAML files: pip install 'filmstrip[train]'") from error
    return yaml
