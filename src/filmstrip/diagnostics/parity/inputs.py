"""The steps before the model: decoded frames, pixels, token ids; and the media used when none are given."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from filmstrip.config import ModelConfig
from filmstrip.diagnostics.activations import Difference, largest_difference
from filmstrip.diagnostics.parity.report import Step, Verdict
from filmstrip.diagnostics.parity.side import OurSide, Side
from filmstrip.errors import PromptError
from filmstrip.inputs.collate import Batch
from filmstrip.media.clip import Clip
from filmstrip.media.encode import write_video
from filmstrip.media.transform import PixelSpec
from filmstrip.shapes import Tensor
from filmstrip.world import Background, Scene, Shape, draw_clip

PIXEL_ROUNDING = 1e-5  # float32 after normalisation, where values reach 2.7
# Where video frames can only be compared with an image processor: Pillow and torch round fixed-point bicubic weights
# differently, so a value may be a level apart. Measured on photographs, at most 0.6 % of the values are; a whole
# picture that is a little brighter has the same largest difference and a mean far above it.
LEVELS_APART, MEAN_LEVELS_APART = 1.5, 0.1
DRAWN_FRAMES, DRAWN_EDGE = 24, 256


@dataclass(frozen=True)
class Case:
    """What both sides are given: files, a question, frames per video (None: each side's own number), and whether a row
    with the question alone joins, which is shorter and so padded.
    """

    paths: tuple[Path, ...]
    question: str
    frames: int | None
    text_row: bool


@dataclass(frozen=True)
class Inputs:
    """What the two models read, and the steps that compare it.

    `replayed` is our batch made of the reference's frames. `theirs` is what the reference's model reads, `adopted` the
    same with our numbers for the placeholders, for our model to read. `processed` is what the reference's own processor
    made, whatever the models then read.
    """

    ours: Batch
    theirs: Batch
    adopted: Batch
    processed: Batch
    steps: tuple[Step, ...]
    clips: tuple[tuple[Clip, Clip], ...]
    replayed: Batch


def draw_media(directory: Path, config: ModelConfig) -> tuple[Path, ...]:
    """Write a drawn clip and a drawn picture, the same ones every time; not square, so that cropping shows.

    A model that takes images only gets the picture alone.
    """
    frames = draw_clip(_scene(DRAWN_FRAMES), DRAWN_EDGE)
    picture = directory / "drawn.png"
    Image.fromarray(np.ascontiguousarray(frames[-1, 40:])).save(picture)
    if config.video_token_id is None:
        return (picture,)
    clip = directory / "drawn.mp4"
    write_video(clip, frames[:, 32:-32])
    return clip, picture


def _scene(num_frames: int) -> Scene:
    """Two shapes that cross on a grey texture: nothing in it is symmetric, and no two frames are alike."""
    circle = Shape("circle", "red", 0.3, "right", ((0.2, 0.35), (0.8, 0.5)), 0, num_frames, (210.0, 40.0, 30.0))
    square = Shape("square", "blue", 0.25, "up", ((0.7, 0.8), (0.4, 0.2)), 0, num_frames, (40.0, 70.0, 200.0))
    ground = Background("texture", (90.0, 90.0, 90.0), (150.0, 150.0, 150.0), seed=3)
    return Scene((circle, square), ground, num_frames)


def compare_inputs(ours: OurSide, theirs: Side, case: Case) -> Inputs:
    """Read the media on both sides and compare what comes out, step by step.

    Raises `MediaError` or `PromptError` when one side cannot read them at all.
    """
    our_clips = [ours.read(path, None, case.frames) for path in case.paths]
    their_clips = [
        theirs.read(clip_path, clip.kind, case.frames) for clip_path, clip in zip(case.paths, our_clips, strict=True)
    ]
    pairs = tuple(zip(our_clips, their_clips, strict=True))
    frames = tuple(_frames_step(place, *pair) for place, pair in enumerate(pairs))
    total = ours.batch(our_clips, case.question, case.text_row)
    replayed = ours.batch([_retimed(*pair) for pair in pairs], case.question, case.text_row)
    try:
        processed = theirs.batch(their_clips, case.question, case.text_row)
    except PromptError as error:  # the model can still be compared, on our inputs
        steps = (*frames, *(Step(0, site, "absent", problem=str(error)) for site in ("pixels", "ids")))
        return Inputs(total, _renamed(replayed, ours.config, theirs.config), replayed, replayed, steps, pairs, replayed)
    processed = _renamed(processed, theirs.config, ours.config)
    level = 0.0 if theirs.exact_video_pixels else _grey_level(ours.opened.processor.pixel_spec)
    pixel_steps, adopted = _pixel_steps(total, replayed, processed, level)
    steps = (*frames, *pixel_steps, *_ids_steps(total, replayed, processed))
    return Inputs(total, _renamed(adopted, ours.config, theirs.config), adopted, processed, steps, pairs, replayed)


def _retimed(ours: Clip, theirs: Clip) -> Clip:
    """The reference's frames, with times for as many frames (our processor labels them)."""
    return replace(theirs, times=ours.times if len(ours.times) == len(theirs.frames) else (0.0,) * len(theirs.frames))


def _frames_step(place: int, ours: Clip, theirs: Clip) -> Step:
    """Decoded frames, in grey levels. They are read from the same file, so nothing is inherited."""
    site = f"frames.{place}.{Path(ours.path).name}"
    if ours.frames.shape != theirs.frames.shape:
        shapes = " and ".join("x".join(map(str, clip.frames.shape)) for clip in (ours, theirs))
        return Step(0, site, "introduced", problem=f"the frames are {shapes} (frames, height, width, channels)")
    found = largest_difference(site, torch.tensor(ours.frames), torch.tensor(theirs.frames))
    return Step(0, site, "introduced" if found.max_abs else "equal", found, found)


def _grey_level(spec: PixelSpec) -> float:
    """The largest step between two neighbouring bytes after rescaling and normalisation."""
    return (spec.rescale if spec.do_rescale else 1.0) / (min(spec.std) if spec.do_normalize else 1.0)


def _pixel_steps(total: Batch, replayed: Batch, theirs: Batch, level: float) -> tuple[list[Step], Batch]:
    """Pixels of images and of videos, and the batch both models read in the replay.

    `level` is above zero where the reference's video pixels could only be had from its image processor. If ours agree
    with them up to the grey level that is known, its model reads ours: that known difference would cover everything
    after it.
    """
    steps: list[Step] = []
    for name in ("pixel_values_images", "pixel_values_videos"):
        reference = getattr(theirs, name)
        if reference is None and getattr(total, name) is None:
            continue
        site = f"pixels.{name.removeprefix('pixel_values_')}"
        introduced, problem = _pixel_difference(site, getattr(replayed, name), reference)
        whole, whole_problem = _pixel_difference(site, getattr(total, name), reference)
        if reference is not None and torch.isnan(reference).all():
            reason = "transformers' video processor needs torchvision, which is not installed; both models read ours"
            steps.append(Step(0, site, "absent", problem=reason))
            theirs = replace(theirs, **{name: getattr(replayed, name)})
            continue
        bound = PIXEL_ROUNDING
        if name == "pixel_values_videos" and introduced is not None and level:
            apart = float((getattr(replayed, name) - reference).abs().mean())
            bound = max(bound, LEVELS_APART * level if apart <= MEAN_LEVELS_APART * level else 0.0)
        verdict = _pixel_verdict(introduced, whole, bound)
        if verdict == "rounding":
            theirs = replace(theirs, **{name: getattr(replayed, name)})
        steps.append(Step(0, site, verdict, whole, introduced, problem=problem or whole_problem))
    return steps, theirs


def _pixel_verdict(introduced: Difference | None, total: Difference | None, bound: float) -> Verdict:
    if introduced is None or introduced.max_abs > bound:
        return "introduced"
    if total is None or total.max_abs > bound:
        return "inherited"
    return "rounding" if introduced.max_abs or total.max_abs else "equal"


def _pixel_difference(site: str, ours: Tensor | None, theirs: Tensor | None) -> tuple[Difference | None, str]:
    if ours is None or theirs is None or ours.shape != theirs.shape:
        shapes = ["none" if pixels is None else "x".join(map(str, pixels.shape)) for pixels in (ours, theirs)]
        return None, f"pixels of shape {shapes[0]} and {shapes[1]}"
    return largest_difference(site, ours, theirs), ""


def _renamed(batch: Batch, one: ModelConfig, other: ModelConfig) -> Batch:
    """A batch with the `other` model's numbers for the placeholders: which number it is makes no difference."""
    renamed_BT = batch.input_ids.clone()
    for kind, token in one.placeholder_ids.items():
        renamed_BT[batch.input_ids == token] = other.placeholder_ids.get(kind, token)
    return replace(batch, input_ids=renamed_BT)


def _ids_steps(total: Batch, replayed: Batch, theirs: Batch) -> list[Step]:
    """One step per row: real ids, and the side on which the row is padded."""
    steps = []
    for row in range(theirs.input_ids.shape[0]):
        site = f"ids.{row}"
        introduced, problem = ids_difference(site, replayed, theirs, row)
        whole, whole_problem = ids_difference(site, total, theirs, row)
        verdict: Verdict = "equal"
        if problem or introduced is None or introduced.max_abs:
            verdict = "introduced"
        elif whole_problem or whole is None or whole.max_abs:
            verdict = "inherited"
        steps.append(Step(0, site, verdict, whole, introduced, problem=problem or whole_problem))
    return steps


def ids_difference(site: str, ours: Batch, theirs: Batch, row: int) -> tuple[Difference | None, str]:
    """How many ids of a row differ, and the first that does; or why the rows cannot be laid side by side."""
    first, second = (batch.input_ids[row][batch.attention_mask[row].bool()] for batch in (ours, theirs))
    if len(first) != len(second):
        common = min(len(first), len(second))
        apart = (first[:common] != second[:common]).nonzero()
        place = int(apart[0]) if len(apart) else common
        return None, f"{len(first)} and {len(second)} ids; the first that differs is at position {place}"
    sides = [padding_side(batch, row) for batch in (ours, theirs)]
    if None not in sides and sides[0] != sides[1]:
        return None, f"padded on the {sides[0]}, the reference on the {sides[1]}"
    return counted_difference(site, first, second), ""


def counted_difference(site: str, ours: Tensor, theirs: Tensor) -> Difference:
    """How many of two equally long rows of ids differ, as a difference; `index` is the first that does."""
    apart = (ours != theirs).nonzero()
    if not len(apart):
        return Difference(site, 0.0, float(len(theirs)))
    place = int(apart[0])
    return Difference(site, float(len(apart)), float(len(theirs)), (place,), float(ours[place]), float(theirs[place]))


def padding_side(batch: Batch, row: int) -> str | None:
    """Where a row is padded: left, right, in between, or None for not at all."""
    mask = batch.attention_mask[row].bool()
    if bool(mask.all()):
        return None
    real = mask.nonzero()[:, 0]
    if int(real[-1]) == len(mask) - 1:
        return "left"
    return "right" if int(real[0]) == 0 else "inside"
