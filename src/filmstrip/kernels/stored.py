"""Weights as they are stored: float32, 16 bit, or whole numbers of 8 or 4 bits with a scale for every few of them."""

import ctypes
from dataclasses import dataclass

import torch

from filmstrip.config.checks import require
from filmstrip.shapes import Float, Tensor

BITS = (8, 4)
GROUPS = {8: 64, 4: 32}  # inputs that share a scale: of fewer bits, fewer share (scripts/quantize_quality.py)
SCALE_DTYPE = torch.float16
FLOAT_KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_INTEGER_KINDS = {torch.int8: 3, torch.uint8: 4}
MULTIPLES = {8: 16, 4: 32}  # of a group: the kernels read parts of one that fill a register and no more
_LEAST_SCALE = 2.0**-24  # above zero in 16 bit
_SHRINK = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)  # tried ranges, of the largest weight of a group


class CMatrix(ctypes.Structure):
    """`Matrix` of products.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("data", "scales", "bias")),
        *((name, ctypes.c_int64) for name in ("rows", "cols", "group")),
        ("kind", ctypes.c_int32),
    )


@dataclass(frozen=True)
class StoredMatrix:
    """A weight of `rows` outputs and `cols` inputs, and its bias in float32.

    `data` is (rows, cols) in a float dtype, or int8 times `scales` (rows, cols / group), or (rows, cols / 2) of uint8,
    two numbers of 4 bits plus 8 in each: of a group of G inputs, byte i holds input i below and input i + G / 2 above.
    """

    data: Tensor
    bias: Float[Tensor, "rows"] | None = None
    scales: Float[Tensor, "rows groups"] | None = None  # SCALE_DTYPE

    @property
    def rows(self) -> int:
        """Number of outputs."""
        return self.data.shape[0]

    @property
    def cols(self) -> int:
        """Number of inputs."""
        return self.data.shape[1] * (2 if self.data.dtype == torch.uint8 else 1)

    @property
    def group(self) -> int:
        """Inputs that share a scale; 0 where there are no scales."""
        return 0 if self.scales is None else self.cols // self.scales.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes that a product reads."""
        return self.data.nbytes + (0 if self.scales is None else self.scales.nbytes)

    @property
    def is_readable(self) -> bool:
        """Whether the library can read it where it is."""
        if self.scales is not None:
            multiple = MULTIPLES[4 if self.data.dtype == torch.uint8 else 8]
            whole = self.group * self.scales.shape[1] == self.cols and self.group % multiple == 0
            if self.scales.dtype != SCALE_DTYPE or not whole:
                return False
        if self.bias is not None and self.bias.dtype != torch.float32:
            return False
        kinds = FLOAT_KINDS if self.scales is None else _INTEGER_KINDS
        tensors = [tensor for tensor in (self.data, self.scales, self.bias) if tensor is not None]
        on_cpu = all(tensor.is_contiguous() and tensor.device.type == "cpu" for tensor in tensors)
        return on_cpu and self.data.dtype in kinds

    def widened(self, dtype: torch.dtype) -> Float[Tensor, "rows cols"]:
        """The whole weight as floats."""
        return self._widened(slice(None)).to(dtype)

    def widen_into(self, buffer: Float[Tensor, "part cols"], start: int) -> None:
        """Fill `buffer` with the rows from `start` on."""
        buffer.copy_(self._widened(slice(start, start + len(buffer))))

    def describe(self) -> CMatrix:
        """For the library. The tensors must outlive it."""
        bias, scales = (None if tensor is None else tensor.data_ptr() for tensor in (self.bias, self.scales))
        kind = (FLOAT_KINDS | _INTEGER_KINDS)[self.data.dtype]
        return CMatrix(self.data.data_ptr(), scales, bias, self.rows, self.cols, self.group, kind)

    def _widened(self, rows: slice) -> Tensor:
        """Some rows: as they are stored, or in float32 where they have scales."""
        data = self.data[rows]
        if self.scales is None:
            return data
        numbers = data.view(len(data), self.scales.shape[1], -1)
        if data.dtype == torch.uint8:
            numbers = torch.cat([numbers & 15, numbers >> 4], dim=-1).to(torch.int8) - 8
        return (numbers * self.scales[rows, :, None].float()).flatten(1)


def quantize(weight: Float[Tensor, "rows cols"], bits: int, group: int) -> StoredMatrix:
    """The nearest weight of `bits` bits: every `group` inputs of a row share a scale.

    Rounding is to nearest. Raises `ConfigError` for sizes that do not fit.
    """
    scales = choose_scales(weight, bits, group)
    return StoredMatrix(round_to(weight, scales, bits), None, scales)


def choose_scales(weight: Float[Tensor, "rows cols"], bits: int, group: int) -> Float[Tensor, "rows groups"]:
    """One scale for every `group` inputs of a row.

    For 4 bits the range is chosen among several by the least squared error of the group: one large weight would
    otherwise take the precision of all others. Raises `ConfigError` for sizes that do not fit, and for weights that are
    too large for a 16-bit scale.
    """
    require(bits in BITS, f"weights are stored in {' or '.join(map(str, BITS))} bits, not {bits}")
    rows, cols = weight.shape
    fits = group > 0 and group % MULTIPLES[bits] == 0 and cols % group == 0
    require(fits, f"{cols} inputs do not divide into groups of {group} (a multiple of {MULTIPLES[bits]})")
    values, most = weight.detach().float().view(rows, cols // group, group), _most(bits)
    largest = values.abs().amax(-1, keepdim=True)
    highest = float(largest.max())
    require(
        highest <= most * torch.finfo(SCALE_DTYPE).max, f"weights up to {highest:.3g} are too large to be quantised"
    )
    best, scales = torch.full_like(largest, torch.inf), torch.ones_like(largest)
    for shrink in _SHRINK if bits == 4 else (1.0,):
        scale = (largest * (shrink / most)).clamp(min=_LEAST_SCALE).to(SCALE_DTYPE).float()
        error = (_round(values, scale, most) * scale - values).square().sum(-1, keepdim=True)
        scales = torch.where(error < best, scale, scales)
        best = torch.minimum(error, best)
    return scales[..., 0].to(SCALE_DTYPE)


def round_to(weight: Float[Tensor, "rows cols"], scales: Float[Tensor, "rows groups"], bits: int) -> Tensor:
    """The stored numbers of a weight, given its scales: `StoredMatrix.data`."""
    values = weight.detach().float().view(*scales.shape, -1)
    numbers = _round(values, scales[..., None].float(), _most(bits))
    if bits == 8:
        return numbers.to(torch.int8).flatten(1)
    low, high = (numbers + 8).to(torch.uint8).chunk(2, dim=-1)
    return (low | high << 4).flatten(1)


def _most(bits: int) -> int:
    return int(2 ** (bits - 1)) - 1


def _round(values: Tensor, scale: Tensor, most: int) -> Tensor:
    return (values / scale).round().clamp(-most - 1, most)
