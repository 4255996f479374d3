"""Small conversation data and checkpoints for the tests of training."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from filmstrip.checkpoint.resolve import resolve
from filmstrip.media.encode import write_video
from filmstrip.testing.tiny import write_tiny_checkpoint
from filmstrip.training.recipe import Recipe
from filmstrip.training.settings import build


def conversation(*turns: str) -> list[dict[str, str]]:
    """Turns of human and gpt by turns, in LLaVA's form."""
    return [{"from": ("human", "gpt")[index % 2], "value": text} for index, text in enumerate(turns)]


def put_tokenizer(folder: Path) -> Path:
    """Put the embedded model's tokenizer where a run would make one: making it takes 20,000 sentences."""
    folder.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(resolve("tiny")) / name, folder)
    return folder


def write_media(folder: Path) -> None:
    """`a.png`, `b.png`, `clip.mp4` of 8 frames."""
    folder.mkdir(parents=True, exist_ok=True)
    frames = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    for name, frame in (("a.png", frames[0]), ("b.png", frames[1])):
        Image.fromarray(frame).save(folder / name)
    write_video(folder / "clip.mp4", frames)


def sound_records() -> list[dict[str, Any]]:
    """One record of each kind: image, video, several media over several turns, both kinds, text alone."""
    return [
        {"id": "image", "image": "a.png", "conversations": conversation("<image>\nwhat is this", "a red square")},
        {
            "id": "video",
            "video": "clip.mp4",
            "conversations": conversation("what moves\n<video>", "the square"),
        },
        {
            "id": "turns",
            "image": ["a.png", "b.png"],
            "conversations": conversation("<image>\nwhat is this", "red", "<image>\nis this a square", "a video"),
        },
        {
            "id": "both",
            "image": "b.png",
            "video": ["clip.mp4"],
            "conversations": conversation("<image>\n<video>\nhow many", "the red square moves"),
        },
        {"id": "text", "conversations": conversation("what is a video", "how is this", "what", "a square")},
    ]


def write_data(folder: Path, records: list[Any], name: str = "data.json") -> Path:
    """Write `records` beside their media; returns the file."""
    write_media(folder)
    path = folder / name
    path.write_text(json.dumps(records))
    return path


def small_recipe(folder: Path, records: list[Any] | None = None, **stage: Any) -> Recipe:
    """A recipe of one stage over a random checkpoint and `records`, both written below `folder`.

    `stage` are settings of the stage; a dict is merged into the section of its name. Settings of the recipe itself
    are given under `recipe`.
    """
    checkpoint = folder / "base"
    if not checkpoint.exists():
        write_tiny_checkpoint(checkpoint)
    data = write_data(folder / "data", sound_records() * 4 if records is None else records)
    sections: dict[str, Any] = {
        "data": {"files": [str(data)], "prompt": "vicuna-v1", "num_frames": 2, "max_tokens": 512},
        "batch": {"size": 4, "workers": 0},
        "optimizer": {"learning_rate": 1e-3},
        "schedule": {"steps": 6, "warmup": 0.1},
    }
    whole = stage.pop("recipe", {})
    for key, value in stage.items():
        sections[key] = {**sections[key], **value} if isinstance(value, dict) and key in sections else value
    values = {
        "name": "small",
        "model": {"checkpoint": str(checkpoint)},
        "threads": 1,
        "checkpoints": {"every_steps": 2, "every_minutes": None},
        "stages": [{"name": "only", "task": "conversations", **sections}],
        **whole,
    }
    return build(Recipe, values, "small")
