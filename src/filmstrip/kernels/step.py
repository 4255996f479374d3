"""One step of decoding as one call: pointers into the weights and the cache, and the library's structures."""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from filmstrip.cache import KVCache
from filmstrip.config.checks import require
from filmstrip.kernels.library import Kernels
from filmstrip.kernels.stored import FLOAT_KINDS, CMatrix, StoredMatrix
from filmstrip.shapes import Bool, Float, Tensor

MAX_ROWS = 8  # of a batch; a product of more rows is what matrix libraries are for
_SMALL = 8 * 2**20  # bytes of weights below which threads wait for each other longer than they read
_FLOATS, _POINTER = ctypes.POINTER(ctypes.c_float), ctypes.c_void_p


class _Layer(ctypes.Structure):
    _fields_ = (
        ("attention_norm", _POINTER),
        *((name, CMatrix) for name in ("q", "k", "v", "o")),
        ("mlp_norm", _POINTER),
        *((name, CMatrix) for name in ("gate", "up", "down")),
    )


class _Step(ctypes.Structure):
    _fields_ = (
        ("layers", ctypes.POINTER(_Layer)),
        ("final_norm", _POINTER),
        ("head", CMatrix),
        *((name, _POINTER) for name in ("x", "cos", "sin", "keys", "values", "keep", "logits", "scratch")),
        *(
            (name, ctypes.c_int64)
            for name in ("num_layers", "batch", "width", "heads", "kv_heads", "head_dim", "inner", "capacity", "length")
        ),
        ("eps", ctypes.c_float),
        ("threads", ctypes.c_int32),
        ("kv", ctypes.c_int32),
    )


@dataclass(frozen=True)
class Projections:
    """The weights of a decoder block in the order of their use; norms are float32."""

    attention_norm: Float[Tensor, "D"]
    q: StoredMatrix
    k: StoredMatrix
    v: StoredMatrix
    o: StoredMatrix
    mlp_norm: Float[Tensor, "D"]
    gate: StoredMatrix
    up: StoredMatrix
    down: StoredMatrix

    @property
    def matrices(self) -> tuple[StoredMatrix, ...]:
        """All but the norms."""
        return (self.q, self.k, self.v, self.o, self.gate, self.up, self.down)


class FusedStep:
    """Reads one new token per row behind the cache's end, all layers and the head in one call.

    The tensors are read where they are, so they must stay there and be contiguous. Sums are float32, in another order
    than PyTorch's: logits differ by rounding.
    """

    def __init__(
        self,
        kernels: Kernels,
        blocks: Sequence[Projections],
        final_norm: Float[Tensor, "D"],
        head: StoredMatrix,
        cache: KVCache,
        eps: float,
    ) -> None:
        expected = ctypes.sizeof(CMatrix) * 1_000_000 + ctypes.sizeof(_Layer) * 1000 + ctypes.sizeof(_Step)
        require(kernels.sizes == expected, "the kernels' structures are others than those of this module")
        self._kernels, self.cache = kernels, cache
        self._kept = (blocks, final_norm, head)  # pointers do not keep what they point to
        self._layers = (_Layer * len(blocks))(*map(_describe, blocks))
        num_layers, batch, kv_heads, _, head_dim = cache.keys.shape
        width, first = final_norm.shape[0], blocks[0]
        self._logits = final_norm.new_empty(batch, head.rows)
        nbytes = sum(matrix.nbytes for block in blocks for matrix in block.matrices) + head.nbytes
        self._step = _Step(
            layers=self._layers,
            final_norm=final_norm.data_ptr(),
            head=head.describe(),
            logits=self._logits.data_ptr(),
            num_layers=num_layers,
            batch=batch,
            width=width,
            heads=first.q.rows // head_dim,
            kv_heads=kv_heads,
            head_dim=head_dim,
            inner=first.gate.rows,
            eps=eps,
            kv=FLOAT_KINDS[cache.keys.dtype],
            threads=1 if nbytes < _SMALL else torch.get_num_threads(),
        )
        self._scratch = self._logits.new_empty(0)

    def __call__(
        self,
        x_BD: Float[Tensor, "B D"],
        rotary_B1H: tuple[Float[Tensor, "B one H"], Float[Tensor, "B one H"]],
        keep_BS: Bool[Tensor, "B S"] | None = None,
    ) -> Float[Tensor, "B W"]:
        """Logits of the tokens after these.

        `rotary_B1H` are cosine and sine of their places; `keep_BS`, this slot included, is False for padding. The cache
        gets their keys and values, but is not advanced. `x_BD` is overwritten. Raises `FilmstripError` when the cache
        is full, `ConfigError` for other shapes.
        """
        cache, step = self.cache, self._step
        cache.require(cache.length + 1)
        require(x_BD.shape == (step.batch, step.width) and x_BD.is_contiguous(), "hidden states of another shape")
        require(keep_BS is None or keep_BS.shape == (step.batch, cache.length + 1), "a mask of another shape")
        cos_B1H, sin_B1H = (table.contiguous() for table in rotary_B1H)
        places = (step.batch, 1, cache.keys.shape[4])
        require(cos_B1H.shape == sin_B1H.shape == places, "rotary tables of another shape")
        keep = None if keep_BS is None else keep_BS.to(torch.uint8).contiguous()
        step.x, step.cos, step.sin = x_BD.data_ptr(), cos_B1H.data_ptr(), sin_B1H.data_ptr()
        step.keys, step.values = cache.keys.data_ptr(), cache.values.data_ptr()
        step.keep = None if keep is None else keep.data_ptr()
        if step.capacity != cache.capacity:
            step.capacity = cache.capacity
            self._scratch = self._logits.new_empty(self._kernels.scratch(ctypes.byref(step)))
            step.scratch = self._scratch.data_ptr()
        step.length = cache.length
        self._kernels.step(ctypes.byref(step))
        return self._logits.clone()


def _describe(block: Projections) -> _Layer:
    q, k, v, o, gate, up, down = (matrix.describe() for matrix in block.matrices)
    return _Layer(block.attention_norm.data_ptr(), q, k, v, o, block.mlp_norm.data_ptr(), gate, up, down)
