"""What a difference looks like: a known mistake that would give just these numbers. Hints are measured, not guessed."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from filmstrip.diagnostics.parity.inputs import ids_difference, padding_side
from filmstrip.diagnostics.parity.side import OurSide, Side
from filmstrip.inputs.collate import Batch
from filmstrip.media.clip import Clip
from filmstrip.shapes import Tensor

_SHIFTS = [(down, right) for down in range(-2, 3) for right in range(-2, 3) if (down, right) != (0, 0)]
_EPSILONS = ("eps", "variance_epsilon")


def frames_hints(ours: Clip, theirs: Clip) -> tuple[str, ...]:
    """Frames in another order, other frames, mirrored ones, swapped channels."""
    hints = []
    if ours.indices != theirs.indices:
        hints.append(f"frames {_numbers(ours.indices)} of the file here, {_numbers(theirs.indices)} in the reference")
    if ours.frames.shape == theirs.frames.shape:
        hints += _arrangements(torch.tensor(ours.frames), torch.tensor(theirs.frames), (1, 2, 3))
    return tuple(hints)


def pixel_hints(ours: Tensor | None, theirs: Tensor | None) -> tuple[str, ...]:
    """Mirrored, shifted, or reordered pixels; another mean or deviation of the channels."""
    if ours is None or theirs is None or ours.shape != theirs.shape:
        return ()
    hints = _arrangements(ours.flatten(0, -4), theirs.flatten(0, -4), (2, 3, 1))
    if hints:
        return tuple(hints)
    best = min(_SHIFTS, key=lambda shift: _shifted_difference(ours, theirs, shift))
    if _shifted_difference(ours, theirs, best) < 0.1 * _shifted_difference(ours, theirs, (0, 0)):
        down, right = best
        return (f"ours is the reference's picture moved by {_moved(down, right)}: the crop begins elsewhere",)
    first, second = (pixels.double().mean(dim=(-2, -1)).flatten(0, -2).mean(0) for pixels in (ours, theirs))
    return (f"channel means {_values(first)} here, {_values(second)} in the reference",)


def _arrangements(ours: Tensor, theirs: Tensor, axes: tuple[int, int, int]) -> list[str]:
    """Whether `ours` is `theirs` (frames first) with frames permuted, mirrored, or its channels swapped.

    `axes` are those of height, width and channels. What is nearest wins, if it explains nine tenths of the difference.
    """
    first, second = ours.float(), theirs.float()
    whole = float((first - second).abs().mean())
    if not math.isfinite(whole) or whole == 0:
        return []
    height, width, channel = axes
    attempts = {
        "mirrored left to right": second.flip(width),
        "upside down": second.flip(height),
        "with red and blue exchanged": second.flip(channel),
    }
    order = [int((first[place] - second).abs().flatten(1).mean(1).argmin()) for place in range(len(first))]
    if order != list(range(len(first))) and sorted(order) == list(range(len(first))):
        attempts[f"with its frames in the order {_numbers(order)}"] = second[order]
    name, nearest = min(attempts.items(), key=lambda item: float((first - item[1]).abs().mean()))
    if float((first - nearest).abs().mean()) < 0.1 * whole:
        return [f"ours is the reference's {name}"]
    return []


def _shifted_difference(ours: Tensor, theirs: Tensor, shift: tuple[int, int]) -> float:
    down, right = shift
    height, width = ours.shape[-2:]
    inner = ours[..., 2 : height - 2, 2 : width - 2]
    moved = theirs[..., 2 + down : height - 2 + down, 2 + right : width - 2 + right]
    return float((inner - moved).abs().mean()) if inner.numel() else math.inf


def _moved(down: int, right: int) -> str:
    words = []
    if down:
        words.append(f"{abs(down)} pixel{'s' * (abs(down) > 1)} {'up' if down > 0 else 'down'}")
    if right:
        words.append(f"{abs(right)} pixel{'s' * (abs(right) > 1)} {'left' if right > 0 else 'right'}")
    return " and ".join(words)


def ids_hints(ours: OurSide, mine: Batch, theirs: Batch, row: int) -> tuple[str, ...]:
    """Padding on the other side, another number of placeholders, the text around the first id that differs."""
    sides = [padding_side(batch, row) for batch in (mine, theirs)]
    hints = []
    if sides[0] != sides[1] and None not in sides:
        hints.append(f"row {row} is padded on the {sides[0]} here and on the {sides[1]} in the reference")
    for kind, token in ours.config.placeholder_ids.items():
        counts = [int((batch.input_ids[row] == token).sum()) for batch in (mine, theirs)]
        if counts[0] != counts[1]:
            hints.append(
                f"{counts[0]} {kind} placeholders here and {counts[1]} in the reference: another number of visual "
                "tokens per frame (a class token kept or dropped?) or of frames"
            )
    difference, _ = ids_difference("ids", mine, theirs, row)
    if difference is not None and difference.max_abs:
        words = [
            repr(ours.opened.processor.tokenizer.id_to_token(int(x))) for x in (difference.ours, difference.theirs)
        ]
        hints.append(f"the first id that differs is {words[0]} here and {words[1]} in the reference")
    return tuple(hints)


def module_hints(ours: OurSide, theirs: Side, module: str) -> list[str]:
    """The weights of a module against the reference's, and its epsilon."""
    hints = []
    for suffix in ("weight", "bias"):
        hints += parameter_hints(ours, theirs, f"{module}.{suffix}")
    mine, their = ours.module(module), theirs.module(module)
    if mine is None or their is None:
        return hints
    epsilons = [
        next((getattr(side, name) for name in _EPSILONS if hasattr(side, name)), None) for side in (mine, their)
    ]
    if None not in epsilons and epsilons[0] != epsilons[1]:
        hints.append(f"epsilon {epsilons[0]:g} here, {epsilons[1]:g} in the reference")
    if not hints:
        hints.append("its weights are equal on both sides: the configuration or the code of this step differs")
    return hints


def parameter_hints(ours: OurSide, theirs: Side, name: str) -> list[str]:
    """One parameter against the reference's: how many values differ, and what it equals instead."""
    mine, their = ours.parameter(name), theirs.parameter(name)
    if mine is None or their is None:
        return []
    if mine.shape != their.shape:
        return [f"{name} has shape {tuple(mine.shape)} here and {tuple(their.shape)} in the reference"]
    mine, their = mine.cpu().double(), their.cpu().double()
    apart = mine != their
    if not bool(apart.any()):
        return []
    hints = [f"{name} differs in {int(apart.sum()):,} of {apart.numel():,} values, by up to {_size(mine - their)}"]
    for side, values in (("here", mine), ("in the reference", their)):
        if not bool(values.any()):
            hints.append(f"{name} is all zero {side}")
    for dtype in (torch.bfloat16, torch.float16):
        if torch.equal(mine.to(dtype), their.to(dtype)):
            hints.append(f"they are equal when rounded to {str(dtype).removeprefix('torch.')} (--dtype compares so)")
            break
    owner, _, suffix = name.rpartition(".")
    parent, _, own = owner.rpartition(".")
    for other in ("q_proj", "k_proj", "v_proj", "out_proj", "o_proj", "gate_proj", "up_proj", "linear_1", "linear_2"):
        elsewhere = theirs.parameter(f"{parent}.{other}.{suffix}") if other != own else None
        if elsewhere is not None and elsewhere.shape == mine.shape and torch.equal(elsewhere.cpu().double(), mine):
            hints.append(f"{name} equals the reference's {other}.{suffix}: exchanged?")
    if mine.dim() == 2 and torch.equal(mine.sum(0).sort().values, their.sum(0).sort().values):
        hints.append(f"{name} has the same column sums: its rows are in another order")
    return hints


def rotary_hints(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> tuple[str, ...]:
    """The base of the rotary embedding, read off the tables of both sides at position one."""
    names = ("text_tower.rotary.cos", "text_tower.rotary.sin")
    bases = [_base(*(side[name] for name in names)) for side in (ours, theirs)]
    if bases[0] is None or bases[1] is None:
        return ()
    if math.isclose(bases[0], bases[1], rel_tol=1e-3):
        return (f"both tables have the base (theta) {bases[0]:.6g}: positions or scaling differ",)
    return (f"rotary base (theta) {bases[0]:.6g} here, {bases[1]:.6g} in the reference",)


def _base(cos_BTH: Tensor, sin_BTH: Tensor) -> float | None:
    """Theta, from the ratio of the two fastest pairs in the first row, which holds the media and no padding."""
    half = cos_BTH.shape[-1] // 2
    if cos_BTH.shape[1] < 2 or half < 2:
        return None
    cos_H = cos_BTH[0, 1, :half].double()
    angle_H = torch.atan2(sin_BTH[0, 1, :half].double(), cos_H)
    if not bool((angle_H[:2] > 0).all()):
        return None
    return float((angle_H[0] / angle_H[1]) ** half)


def selected_hints(site: str, ours: Tensor, theirs: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Which of the reference's hidden states ours is, and which the reference takes."""
    tower = site.removesuffix(".selected")
    tokens, width = ours.shape[-2:]
    found = []
    for value in (ours, theirs[site]):
        for other, state in theirs.items():
            if not other.startswith(f"{tower}.hidden_states.") or state.shape[-1] != width:
                continue
            remark = next((text for text, kept in _kept_tokens(state).items() if _same_values(kept, value)), None)
            if remark is not None:
                found.append(f"hidden state {other.rsplit('.', 1)[1]} {remark}")
                break
    if len(found) == 2 and found[0] != found[1]:
        return (f"{found[0]} here, {found[1]} in the reference",)
    return (f"{tokens} tokens per frame here",) if theirs[site].shape[-2] != tokens else ()


def _kept_tokens(state: Tensor) -> dict[str, Tensor]:
    """The ways in which a hidden state's tokens may be selected."""
    return {
        "with its class token": state,
        "without its class token": state[..., 1:, :],
        "without its last token": state[..., :-1, :],
    }


def _same_values(one: Tensor, other: Tensor) -> bool:
    return one.numel() == other.numel() and torch.equal(one.reshape(other.shape).to(other), other)


def _numbers(values: Sequence[int] | np.ndarray) -> str:
    return " ".join(str(int(value)) for value in values)


def _values(values: Tensor) -> str:
    return ", ".join(f"{value:.3f}" for value in values.tolist())


def _size(difference: Tensor) -> str:
    return f"{float(difference.abs().max()):.3g}"
