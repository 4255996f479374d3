"""Mild damage to drawn frames, as compression and cameras do it, so that a model does not rely on perfect pixels.

At strength 1: contrast +-10 %, brightness +-12 levels, a slight blur for half of the pictures, noise of up to 6 levels
standard deviation. Strength 0 changes nothing.
"""

import numpy as np


def augment_clip(frames_FYXC: np.ndarray, rng: np.random.Generator, strength: float = 1.0) -> np.ndarray:
    """Damage a clip, uint8 (F, Y, X, 3) in and out: light and blur alike for all frames, noise for each."""
    return _augment(frames_FYXC, rng, strength, 1)


def augment_stills(pictures_NYXC: np.ndarray, rng: np.random.Generator, strength: float = 1.0) -> np.ndarray:
    """Damage pictures that do not belong together, uint8 (N, Y, X, 3) in and out, each in its own way."""
    return _augment(pictures_NYXC, rng, strength, len(pictures_NYXC))


def _augment(frames: np.ndarray, rng: np.random.Generator, strength: float, groups: int) -> np.ndarray:
    """One draw of light, blur and noise for each of `groups` equal parts of `frames`; `groups` is 1 or all."""
    if strength <= 0:
        return frames
    contrast, brightness, blur, noise = rng.random((4, groups, 1, 1, 1), dtype=np.float32)
    gain = 1 + strength * 0.1 * (2 * contrast - 1)
    shift = strength * 12 * (2 * brightness - 1) + 128 * (1 - gain)
    damaged = frames * gain + shift
    _blur(damaged, min(strength, 1.0) * 0.4 * np.maximum(blur - 0.5, 0))
    # The sum of two uniform variables: cheap, and near enough to a normal one of the same standard deviation.
    reach = strength * noise * 6 * (np.sqrt(np.float32(6)) / 255)
    draws = rng.integers(0, 256, (2, *frames.shape), dtype=np.uint8)
    damaged += (draws[0].astype(np.float32) - draws[1]) * reach
    damaged += np.float32(0.5)
    rounded: np.ndarray = np.clip(damaged, 0, 255, out=damaged).astype(np.uint8)
    return rounded


def _blur(frames: np.ndarray, side: np.ndarray) -> None:
    """Three-tap filter (side, 1 - 2 side, side) along both axes, in place; borders are left sharp."""
    if not side.any():
        return
    frames[:, 1:-1] += side * (frames[:, :-2] + frames[:, 2:] - 2 * frames[:, 1:-1])
    frames[:, :, 1:-1] += side * (frames[:, :, :-2] + frames[:, :, 2:] - 2 * frames[:, :, 1:-1])
