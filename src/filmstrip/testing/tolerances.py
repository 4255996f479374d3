"""How far two implementations may be apart, with the reason and what was measured. Tests take their bounds from here.

`worst` is the largest difference seen over the whole grid of the tests that use the entry (PyTorch 2.13 on one CPU
thread); the bound leaves room for other kernels, not for other equations: the smallest mistake of equation that the
golden fixture plants moves a logit by 2.3e-3.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Tolerance:
    """`relative` differences are divided by the largest absolute reference value of the activation."""

    dtype: str
    bound: float
    worst: float
    reason: str
    relative: bool = False


TOLERANCES: dict[str, Tolerance] = {
    "activations, float32, same kernels": Tolerance(
        "float32",
        bound=1e-5,
        worst=0.0,
        reason="the same PyTorch kernels on the same values in the same order give the same bits; the bound leaves "
        "a few units in the last place of values around 10 for a library that picks its kernel by memory alignment",
    ),
    "activations, float32, other kernels": Tolerance(
        "float32",
        bound=1e-4,
        worst=1.3e-5,
        reason="fused attention against written-out: the same sums in another order; values reach 20 (logits)",
    ),
    "activations, bfloat16, same kernels": Tolerance(
        "bfloat16",
        bound=0.02,
        worst=0.0,
        relative=True,
        reason="as in float32; one rounding of bfloat16 is 2^-8 = 0.004 of a value, and the bound leaves a few",
    ),
    "activations, bfloat16, other kernels": Tolerance(
        "bfloat16",
        bound=0.06,
        worst=0.025,
        relative=True,
        reason="fused attention keeps float32 inside, written-out attention rounds scores and weights to 8 bits in "
        "every layer; largest after the final norm",
    ),
    "golden fixture": Tolerance(
        "float32",
        bound=5e-5,
        worst=1.0e-5,
        reason="the table is printed with five decimals (5e-6) and its values were checked across kernels to 1e-5",
    ),
    "golden fixture, sums": Tolerance(
        "float32",
        bound=1e-3,
        worst=4.7e-4,
        reason="the sum of 6,000 logits is printed with three decimals (5e-4), and kernels move it by 1e-4",
    ),
    "real LLaMA weights": Tolerance(
        "float32",
        bound=1e-3,
        worst=4.6e-5,
        reason="30 layers of the same sums; nothing with the same kernels, 4.6e-5 against written-out attention, on "
        "logits up to 29; rows of q and k left in llama.cpp's order would move them by 13",
    ),
    "compiled step, float32": Tolerance(
        "float32",
        bound=1e-4,
        worst=1.2e-5,
        reason="the same sums in another order, float32 throughout; logits reach 20",
    ),
    "compiled step, 16-bit cache": Tolerance(
        "float32",
        bound=1e-2,
        worst=1.9e-4,
        reason="as above; a sum that differs in the last place may round to the next number of 16 bits",
    ),
    "widened products": Tolerance(
        "float32",
        bound=1e-4,
        worst=0.0,
        reason="widening is exact, so these are float32 sums of the same numbers in another order; logits reach 20",
    ),
}
