"""From a step that introduces a difference to what caused it."""

from collections.abc import Sequence
from typing import Literal

import torch

from filmstrip.config import MediaKind
from filmstrip.diagnostics.parity import hints
from filmstrip.diagnostics.parity.inputs import Inputs
from filmstrip.diagnostics.parity.inside import Found, block_of, take_apart
from filmstrip.diagnostics.parity.model_steps import ONE_STEP, ROTARY, SAME_EQUATION, ModelRuns
from filmstrip.diagnostics.parity.report import Fault, Step
from filmstrip.diagnostics.parity.side import OurSide, Side

BEFORE_THE_MODEL = ("frames", "pixels", "ids")


def find_faults(
    ours: OurSide, theirs: Side, inputs: Inputs, steps: Sequence[Step], runs: ModelRuns, dtype: torch.dtype
) -> tuple[Fault, ...]:
    """One fault per step that introduces a difference.

    The steps before the model are looked at for known mistakes. Of each tower, the projector and the head the first
    faulty step is taken apart; those after it are only named (what is wrong in every layer would otherwise be run once
    per layer).
    """
    faults = []
    opened: set[str] = set()
    for step in (step for step in steps if step.verdict == "introduced"):
        if step.stage in BEFORE_THE_MODEL:
            faults.append(Fault(step, step.site, hints=_input_hints(ours, inputs, step)))
        elif step.stage == "tokens":
            faults.append(Fault(step, step.site, hints=(step.problem,) if step.problem else ()))
        elif step.site == "text_tower.final_norm" and _more_blocks(ours, theirs, "text"):
            faults.append(_depth_fault(ours, theirs, step))
        elif step.site.startswith(ROTARY):
            faults.append(Fault(step, "text_tower.rotary", hints=hints.rotary_hints(runs.replay.kept, runs.theirs)))
        elif step.site.endswith(".selected"):
            faults.append(Fault(step, step.site, hints=_selected_hints(ours, theirs, step, runs)))
        elif step.stage in opened:
            faults.append(Fault(step, block_of(step.site)))
        else:
            faults.append(_model_fault(ours, theirs, inputs, step, dtype))
            opened.add(step.stage)
    return tuple(faults)


def _depth_fault(ours: OurSide, theirs: Side, step: Step) -> Fault:
    """The norm reads the last block's output on either side, which is not of the same block: that is the fault."""
    block = f"text_tower.blocks.{min(ours.config.text.num_layers, theirs.config.text.num_layers)}"
    return Fault(step, block, theirs.module_name(block) or "", hints=_more_blocks(ours, theirs, "text"))


def _more_blocks(ours: OurSide, theirs: Side, tower: MediaKind | Literal["text"]) -> tuple[str, ...]:
    """A line about the blocks of a tower that one side alone has; nothing when both have as many."""
    mine, their = (
        (side.config.text if tower == "text" else side.config.tower(tower)).num_layers for side in (ours, theirs)
    )
    if mine == their:
        return ()
    deeper, more = ("this model", mine - their) if mine > their else ("the reference", their - mine)
    blocks = "1 more block" if more == 1 else f"{more} more blocks"
    return (f"{deeper} has {blocks} of the {tower} tower after blocks.{min(mine, their) - 1}",)


def _selected_hints(ours: OurSide, theirs: Side, step: Step, runs: ModelRuns) -> tuple[str, ...]:
    """What the numbers say, and what the configurations do."""
    lines = hints.selected_hints(step.site, runs.replay.kept[step.site], runs.theirs)
    lines += _more_blocks(ours, theirs, "video" if step.stage == "video_tower" else "image")
    layers = (ours.config.select_layers, theirs.config.select_layers)
    if layers[0] != layers[1]:
        lines += (f"the configuration takes the hidden states {layers[0]} here and {layers[1]} in the reference",)
    return lines


def _input_hints(ours: OurSide, inputs: Inputs, step: Step) -> tuple[str, ...]:
    stage, _, rest = step.site.partition(".")
    if stage == "frames":
        return hints.frames_hints(*inputs.clips[int(rest.split(".")[0])])
    if stage == "pixels":
        name = f"pixel_values_{rest}"
        return hints.pixel_hints(getattr(inputs.replayed, name), getattr(inputs.processed, name))
    return hints.ids_hints(ours, inputs.replayed, inputs.processed, int(rest))


def _model_fault(ours: OurSide, theirs: Side, inputs: Inputs, step: Step, dtype: torch.dtype) -> Fault:
    site = step.site
    double = step.introduced_double
    vanishes = double is not None and double.relative <= SAME_EQUATION
    found = take_apart(
        ours, theirs, inputs, site, "working" if vanishes else "double", ONE_STEP[dtype] if vanishes else SAME_EQUATION
    )
    lines = [found.remark] if found.remark else []
    if vanishes:
        lines.append("the difference vanishes in float64 and is too large for rounding: one side computes in less")
    lines += _part_hints(ours, theirs, found)
    return Fault(step, found.name, theirs.module_name(found.module) or "", found.difference, tuple(lines))


def _part_hints(ours: OurSide, theirs: Side, found: Found) -> list[str]:
    """What the weights and settings of the part say."""
    if found.name == found.module:
        tower, _, rest = found.module.partition(".")
        if rest == "embeddings":  # patches were equal, so it is what is put beside them or added
            names = ("class_embedding", "position_embedding.weight")
            return [line for name in names for line in hints.parameter_hints(ours, theirs, f"{tower}.{name}")]
        return [] if found.remark else hints.module_hints(ours, theirs, found.module)
    own = found.name.rsplit(".", 1)[1]
    if own in ("rotated_query", "rotated_key"):
        return ["projections and rotary tables are equal: the way pairs are turned differs (halves or neighbours?)"]
    if own == "mixed_values":
        return ["queries, keys and values are equal: mask, scale or softmax differ"]
    return []
