"""The whole comparison, from files to a report."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from filmstrip.api.load import as_device, as_dtype, open_model
from filmstrip.diagnostics.parity.faults import find_faults
from filmstrip.diagnostics.parity.generation import generation_steps
from filmstrip.diagnostics.parity.inputs import Case, Inputs, compare_inputs, draw_media
from filmstrip.diagnostics.parity.model_steps import any_difference, model_steps, run_both
from filmstrip.diagnostics.parity.report import ParityReport, Step, number_steps
from filmstrip.diagnostics.parity.side import OurSide, Side
from filmstrip.errors import CheckpointError, PromptError

TRANSFORMERS = "transformers"
NEEDS_TRANSFORMERS = (
    "comparing with transformers needs it installed: pip install 'transformers==5.23.0' "
    "(comparing with another checkpoint directory does not)"
)
DEFAULT_QUESTION = "What is the number of shapes?"
Progress = Callable[[str], None]


@dataclass(frozen=True)
class ParityOptions:
    """What to compare and on what. `media` empty: a drawn clip and picture. `choices` are fields of the preset."""

    media: tuple[Path, ...] = ()
    question: str = DEFAULT_QUESTION
    frames: int | None = None
    dtype: str = "float32"
    device: str = "cpu"
    preset: str | None = None
    new_tokens: int = 16
    choices: tuple[tuple[str, Any], ...] = ()


def compare_models(
    model: str, against: str, options: ParityOptions, on_progress: Progress = lambda text: None
) -> ParityReport:
    """Run `model` and `against` (`transformers`, or another checkpoint) on the same input; say where they part.

    Raises `FilmstripError` when one of them cannot be loaded, or the two cannot be compared at all.
    """
    on_progress("opening both models")
    ours, theirs = open_sides(model, against, options)
    _require_comparable(ours, theirs)
    # With dynamic scaling transformers gives a whole batch the base of its longest row, ours each row its own.
    dynamic = "dynamic" in (ours.config.text.rope.scaling, theirs.config.text.rope.scaling)
    with tempfile.TemporaryDirectory() as folder:
        on_progress("reading media")
        media = options.media or draw_media(Path(folder), ours.config)
        case = Case(media, options.question, options.frames, text_row=not dynamic)
        inputs = compare_inputs(ours, theirs, case)
    report = _compare(ours, theirs, inputs, options, on_progress)
    return replace(report, media=tuple(str(path) if options.media else f"{path.name} (drawn)" for path in media))


def open_sides(model: str, against: str, options: ParityOptions) -> tuple[OurSide, Side]:
    """Find both and check everything but weights. Errors as for `compare_models`."""
    dtype = as_dtype(options.dtype) or torch.float32
    device = as_device(options.device)
    if against == TRANSFORMERS:
        preset = options.preset or TRANSFORMERS
        opened = open_model(model, device=device, preset=preset, **dict(options.choices))
        try:
            from filmstrip.diagnostics.parity.reference_side import TransformersSide
        except ModuleNotFoundError as error:
            raise CheckpointError(NEEDS_TRANSFORMERS) from error
        theirs = TransformersSide(opened.checkpoint, opened.selection.num_frames, dtype, device)
        return OurSide(opened, dtype, model), theirs
    sides = [
        OurSide(open_model(name, device=device, preset=options.preset, **dict(options.choices)), dtype, name)
        for name in (model, against)
    ]
    return sides[0], sides[1]


def _require_comparable(ours: OurSide, theirs: Side) -> None:
    """Raise `CheckpointError` when values of the two cannot even be subtracted: other widths."""
    first, second = ours.config, theirs.config
    widths = {
        "text hidden size": (first.text.hidden_size, second.text.hidden_size),
        "tower hidden size": (first.image_tower.hidden_size, second.image_tower.hidden_size),
        "image size": (first.image_tower.image_size, second.image_tower.image_size),
        "patch size": (first.image_tower.patch_size, second.image_tower.patch_size),
        "head width": (first.text.head_dim, second.text.head_dim),
    }
    apart = [f"{name} {one} and {other}" for name, (one, other) in widths.items() if one != other]
    if apart:
        raise CheckpointError(f"{ours.title} and {theirs.title} cannot be compared by values: {', '.join(apart)}")


def _setting_notes(ours: OurSide, theirs: Side) -> list[str]:
    """What is different before anything runs: presets, depths."""
    notes = []
    if isinstance(theirs, OurSide):
        presets = [side.opened.program.preset.name for side in (ours, theirs)]
        if presets[0] != presets[1]:
            notes.append(
                f"this model runs the preset {presets[0]}, the reference {presets[1]}; --preset makes them one"
            )
    first, second = ours.config, theirs.config
    depths = {
        "text layers": (first.text.num_layers, second.text.num_layers),
        "layers of the image tower": (first.image_tower.num_layers, second.image_tower.num_layers),
        "layers of the video tower": (first.video_tower.num_layers, second.video_tower.num_layers),
    }
    return notes + [
        f"{one} {name} here, {other} in the reference" for name, (one, other) in depths.items() if one != other
    ]


def _compare(
    ours: OurSide, theirs: Side, inputs: Inputs, options: ParityOptions, on_progress: Progress
) -> ParityReport:
    dtype = as_dtype(options.dtype) or torch.float32
    on_progress(f"running both in {options.dtype}")
    notes = _setting_notes(ours, theirs)
    try:
        working = run_both(ours, theirs, inputs, "working")
    except PromptError as error:  # the reference's processor and model do not fit together
        notes.append(f"{error}; both models read the inputs made here")
        inputs = replace(inputs, theirs=inputs.replayed, adopted=inputs.replayed)
        working = run_both(ours, theirs, inputs, "working")
    on_progress(f"generating {options.new_tokens} tokens with both")
    token_steps, texts = generation_steps(ours, theirs, inputs, options.new_tokens, dtype)
    double = None
    if any_difference(working):
        on_progress("running both in float64")
        working.theirs.clear()  # what was needed of it has been compared
        double = run_both(ours, theirs, inputs, "double")
    differ = any(step.verdict in ("introduced", "inherited") for step in inputs.steps)
    inside = model_steps(working, double, dtype, inputs_differ=differ)
    steps = number_steps([*inputs.steps, *inside, *_settled([*inputs.steps, *inside], token_steps)])
    on_progress("looking for the cause")
    faults = find_faults(ours, theirs, inputs, steps, double or working, dtype)
    notes += [*ours.notes, *theirs.notes]
    return ParityReport(
        model=ours.title,
        against=theirs.title,
        dtype=options.dtype,
        question=options.question,
        media=(),
        steps=steps,
        faults=faults,
        notes=tuple(dict.fromkeys(notes)),
        double_run=double is not None,
        texts=tuple(texts),
    )


def _settled(before: Sequence[Step], tokens: Sequence[Step]) -> list[Step]:
    """Token steps in the light of the steps before them: what the model introduced, generation did not.

    A loop on the reference's inputs still runs our whole model, so its difference is inherited from a faulty step of
    the model; and if nothing was introduced before, a whole run that ends elsewhere is rounding.
    """
    faulty_inputs = any(step.verdict == "introduced" and step.stage in ("frames", "pixels", "ids") for step in before)
    faulty_model = any(step.verdict == "introduced" and step.total_double is not None for step in before)
    settled = []
    for step in tokens:
        verdict = step.verdict
        if verdict in ("introduced", "rounding") and faulty_model:
            verdict = "inherited"
        if verdict == "inherited" and not (faulty_inputs or faulty_model):
            verdict = "rounding"
        settled.append(replace(step, verdict=verdict))
    return settled
