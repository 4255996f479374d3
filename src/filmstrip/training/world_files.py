"""The world as files that any trainer reads, and back: clips, pictures, conversations, and the truth beside them.

A directory holds::

    conversations.json    LLaVA's format: a list of {"id", "video" or "image", "conversations"}
    truth.json            by id, for every question: family, candidates, the answer backwards, the facts, the phrasing
    world.json            what was drawn: split, seed, sizes, families
    clips/000000.mp4      images/000000.png

Every item depends on the split, the seed and its number alone. Files appear whole or not at all, conversations.json
last; an export that was stopped goes on where it was when it is run again.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from filmstrip.checkpoint.atomic import swap_file
from filmstrip.config import MediaKind
from filmstrip.config.checks import require, require_choice
from filmstrip.errors import ConfigError
from filmstrip.media.encode import write_video
from filmstrip.training.photos import TEST_PHOTOS, TRAIN_PHOTOS, load_photos
from filmstrip.training.records import PLACEHOLDERS, DataError, Record, parse_record, read_records
from filmstrip.world import (
    CLIPS,
    FAMILIES,
    SPLITS,
    STILLS,
    TICKS,
    Question,
    Scene,
    ask_about,
    draw_clip,
    sample_clip,
    sample_still,
    split_rng,
)

CONVERSATIONS, TRUTH, PLAN = "conversations.json", "truth.json", "world.json"
FPS = 8
_FOLDERS: dict[MediaKind, tuple[str, str]] = {"video": ("clips", ".mp4"), "image": ("images", ".png")}
_TRIES = 500  # scenes drawn for an item before no question of the wanted families is given up
_VERSION = 1  # of the drawing: directories of another version are not continued
_MAX_TRUTH_BYTES = 2**30


@dataclass(frozen=True)
class WorldPlan:
    """What an export holds: `clips` of `frames` frames and `images`, drawn at `size` pixels an edge.

    Each has up to `questions` questions of `families` (none named: all). `photos` says whether photographs lie behind
    the shapes; without them there is no camera to ask about.
    """

    clips: int
    images: int = 0
    split: str = "train"
    seed: int = 0
    size: int = 256
    frames: int = 32
    questions: int = 6
    families: tuple[str, ...] = ()
    photos: bool = True

    def __post_init__(self) -> None:
        require_choice("split", self.split, SPLITS)
        for family in self.families:
            require_choice("question family", family, FAMILIES)
        require(self.clips >= 0 and self.images >= 0, "numbers of clips and images must not be negative")
        require(self.clips + self.images > 0, "there is nothing to draw: ask for clips or images")
        require(self.seed >= 0, f"the seed must not be negative, is {self.seed}")
        require(16 <= self.size <= 1024 and self.size % 2 == 0, f"the size must be even, 16 to 1024, not {self.size}")
        frames = f"a clip has {TICKS} to 1024 frames, a multiple of {TICKS}, not {self.frames}"
        require(TICKS <= self.frames <= 1024 and self.frames % TICKS == 0, frames)
        require(1 <= self.questions <= 100, f"1 to 100 questions are asked about a clip, not {self.questions}")


@dataclass(frozen=True)
class WorldItem:
    """One clip or picture of a directory, with its questions and their truth."""

    id: str
    kind: MediaKind
    path: Path
    plot: str
    questions: tuple[Question, ...]


def world_photos(split: str) -> list[np.ndarray]:
    """The photographs of a split, uint8 (Y, X, 3): training and validation share theirs, the test has others."""
    return load_photos(TEST_PHOTOS if split == "test" else TRAIN_PHOTOS)


def make_item(plan: WorldPlan, kind: MediaKind, number: int, photos: list[np.ndarray]) -> tuple[Scene, list[Question]]:
    """The scene and the questions of item `number` of its kind.

    Raises `ConfigError` if scenes of this kind have no question of the plan's families.
    """
    rng = split_rng(plan.split, plan.seed, 2 * number + (kind == "image"))
    clip = replace(CLIPS, num_frames=plan.frames, num_photos=len(photos))
    still = replace(STILLS, num_photos=len(photos))
    for _ in range(_TRIES):
        scene = sample_clip(rng, plan.split, clip) if kind == "video" else sample_still(rng, still)
        questions = ask_about(scene, rng, plan.questions, plan.families or FAMILIES)
        if questions:
            return scene, questions
    media = "clip" if kind == "video" else "image"
    hint = " without photographs" if kind == "video" and not photos else ""
    raise ConfigError(f"no {media}{hint} has a question of the families {', '.join(plan.families)}")


def export_world(
    directory: Path, plan: WorldPlan, on_progress: Callable[[int], None] = lambda done: None
) -> Counter[str]:
    """Write `plan` to `directory` and count the questions by family; what is already there of it stays.

    Raises `DataError` for a directory that holds anything else, and for what cannot be written.
    """
    photos = world_photos(plan.split) if plan.photos else []
    records: list[dict[str, Any]] = []
    truth: dict[str, Any] = {}
    counts: Counter[str] = Counter()
    try:
        _claim(directory, plan)
        for kind, number in _numbers(plan):
            scene, questions = make_item(plan, kind, number, photos)
            folder, suffix = _FOLDERS[kind]
            name = f"{folder}/{number:06d}{suffix}"
            if not (directory / name).is_file():
                _draw(directory / name, scene, plan.size, photos)
            item = f"{plan.split}-{plan.seed}-{kind}-{number:06d}"
            records.append({"id": item, kind: name, "conversations": _conversation(kind, questions)})
            truth[item] = {"plot": scene.plot, "questions": [_plain(question) for question in questions]}
            counts.update(question.family for question in questions)
            on_progress(1)
        _write(directory / TRUTH, truth)
        _write(directory / CONVERSATIONS, records)
    except OSError as error:
        raise DataError(f"cannot write {directory}: {error.strerror or error}") from error
    return counts


def read_world(directory: Path) -> Iterator[WorldItem]:
    """The items of an exported directory, in its order. Frames are read by whoever wants them (`load_media`).

    Raises `DataError` for a directory that is not one, is incomplete, or whose parts contradict each other.
    """
    if not (directory / CONVERSATIONS).is_file():
        unfinished = (directory / PLAN).is_file()
        say = "is an unfinished export; run the same export again to go on" if unfinished else "is no exported world"
        raise DataError(f"{directory} {say} (it has no {CONVERSATIONS})")
    truth = _read_object(directory / TRUTH)
    for raw in read_records([directory / CONVERSATIONS]):
        try:
            record = parse_record(raw)
            yield _item(raw.name, record, truth.get(raw.name))
        except DataError as error:
            raise DataError(f"{directory}: item {raw.name}: {error}") from error


def _numbers(plan: WorldPlan) -> Iterator[tuple[MediaKind, int]]:
    yield from (("video", number) for number in range(plan.clips))
    yield from (("image", number) for number in range(plan.images))


def _claim(directory: Path, plan: WorldPlan) -> None:
    """Make `directory` that of `plan`, which goes on where an earlier run of the same world stopped, or grows."""
    content = json.loads(json.dumps({"version": _VERSION, "fps": FPS, **asdict(plan)}))
    if (directory / PLAN).exists():
        there = _read_object(directory / PLAN)
        different = sorted(key for key in content if key not in ("clips", "images") and there.get(key) != content[key])
        if different:
            raise DataError(f"{directory} holds another world: it differs in {', '.join(different)}")
        fewer = [key for key in ("clips", "images") if there.get(key, 0) > content[key]]
        if fewer and (directory / CONVERSATIONS).exists():
            held = " and ".join(f"{there[key]} {key}" for key in fewer)
            raise DataError(f"{directory} holds {held}: ask for no fewer, or choose another place")
    elif directory.exists() and any(directory.iterdir()):
        raise DataError(f"{directory} is not empty and holds no world; choose another place")
    for folder, _ in _FOLDERS.values():
        (directory / folder).mkdir(parents=True, exist_ok=True)
    _write(directory / PLAN, content)


def _draw(path: Path, scene: Scene, size: int, photos: list[np.ndarray]) -> None:
    frames = draw_clip(scene, size, photos)
    partial = path.with_name(f".partial-{path.name}")
    if scene.medium == "video":
        write_video(partial, frames, FPS)
    else:
        Image.fromarray(frames[0]).save(partial)
    partial.replace(path)


def _write(path: Path, content: Any) -> None:
    swap_file(path, (json.dumps(content, indent=1) + "\n").encode())


def _conversation(kind: MediaKind, questions: list[Question]) -> list[dict[str, str]]:
    turns = []
    for number, question in enumerate(questions):
        before = f"{PLACEHOLDERS[kind]}\n" if number == 0 else ""
        turns += [{"from": "human", "value": before + question.text}, {"from": "gpt", "value": question.answer}]
    return turns


def _plain(question: Question) -> dict[str, Any]:
    return asdict(question) | {"facts": sorted(question.facts)}


def _read_object(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MAX_TRUTH_BYTES:
            raise DataError(f"{path} is larger than {_MAX_TRUTH_BYTES} bytes, the limit for such a file")
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not valid JSON: {str(error)[:100]}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} does not hold a JSON object")
    return content


def _item(name: str, record: Record, truth: Any) -> WorldItem:
    if len(record.media) != 1:
        raise DataError(f"it has {len(record.media)} media, not one")
    if not isinstance(truth, dict) or not isinstance(truth.get("questions"), list):
        raise DataError(f"{TRUTH} says nothing about it")
    questions = tuple(_question(values) for values in truth["questions"])
    said = [turn.text for turn in record.turns]
    if said != [text for question in questions for text in (question.text, question.answer)]:
        raise DataError(f"{CONVERSATIONS} and {TRUTH} do not agree")
    ((kind, path),) = record.media
    return WorldItem(name, kind, path, str(truth.get("plot")), questions)


def _question(values: Any) -> Question:
    texts = ("family", "subject", "text", "answer", "reversed_answer", "phrasing")
    lists = ("candidates", "facts")
    usable = (
        isinstance(values, dict)
        and values.keys() == {*texts, *lists}
        and all(isinstance(values[key], str) for key in texts)
        and all(isinstance(values[key], list) and all(isinstance(one, str) for one in values[key]) for key in lists)
    )
    if not usable:
        raise DataError(f"{TRUTH} holds something other than a question")
    return Question(**{**values, "candidates": tuple(values["candidates"]), "facts": frozenset(values["facts"])})
