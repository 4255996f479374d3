"""Products of float32 activations with weights that are stored in fewer bits.

Processors without instructions for it multiply 16-bit matrices at an eighth of their float32 rate. So weights stay as
they are stored, in the memory map where possible, and are widened on the way: for one to eight rows by a kernel that
reads memory once, for more a piece at a time into one buffer that stays in the processor's cache.
"""

import ctypes
import json
import os
import threading
import time

import torch
from torch.nn import functional

from filmstrip.kernels.library import cache_directory, find_kernels, processor_name
from filmstrip.kernels.step import MAX_ROWS
from filmstrip.kernels.stored import StoredMatrix
from filmstrip.shapes import Float, Tensor

HALF_DTYPES = (torch.bfloat16, torch.float16)
PIECE = 2**21  # weights widened at once
_ROWS, _WIDTH, _TRIES = 128, 1024, 3  # of the products that are timed
_MARGIN = 1.3  # by which the faster one must be faster: a busy machine decides no close call
_local = threading.local()


def product(x: Float[Tensor, "*rows inputs"], matrix: StoredMatrix) -> Float[Tensor, "*rows outputs"]:
    """`x W^T + bias` in the precision of `x`; W is (outputs, inputs) in any."""
    flat = x.reshape(-1, x.shape[-1])
    learning = (x, matrix.data, matrix.bias)
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in learning):
        return functional.linear(x, matrix.widened(x.dtype), matrix.bias)
    kernels = (
        find_kernels()[0] if len(flat) <= MAX_ROWS and x.dtype == torch.float32 and x.device.type == "cpu" else None
    )
    if kernels is not None and matrix.is_readable and flat.shape[1] == matrix.cols:
        out = flat.new_empty(len(flat), matrix.rows)
        flat = flat.contiguous()
        described = matrix.describe()
        kernels.product(
            ctypes.byref(described),
            ctypes.c_void_p(flat.data_ptr()),
            ctypes.c_int64(len(flat)),
            ctypes.c_int32(torch.get_num_threads()),
            ctypes.c_void_p(out.data_ptr()),
        )
    else:
        out = _in_pieces(flat, matrix)
    return out.view(*x.shape[:-1], matrix.rows)


def _in_pieces(x: Float[Tensor, "rows inputs"], matrix: StoredMatrix) -> Tensor:
    out = x.new_empty(len(x), matrix.rows)
    step = max(1, PIECE // x.shape[1])
    for start in range(0, matrix.rows, step):
        end = min(start + step, matrix.rows)
        buffer = _buffer((end - start, x.shape[1]), x.dtype, x.device)
        matrix.widen_into(buffer, start)
        torch.mm(x, buffer.T, out=out[:, start:end])
    return out if matrix.bias is None else out.add_(matrix.bias)


def _buffer(shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Memory of this thread that is written anew each time: fresh memory would cost more than the product."""
    count = shape[0] * shape[1]
    kept: Tensor | None = getattr(_local, "buffer", None)
    if kept is None or kept.numel() < count or kept.dtype != dtype or kept.device != device:
        with torch.inference_mode(False):  # or it could not be written to outside of inference mode later on
            kept = _local.buffer = torch.empty(max(count, PIECE), dtype=dtype, device=device)
    return kept[:count].view(shape)


def faster_widened(dtype: torch.dtype) -> bool:
    """Whether this machine multiplies with weights of `dtype` faster in float32; measured once and remembered."""
    key = f"{processor_name()} | torch {torch.__version__} | {torch.get_num_threads()} threads | {dtype}"
    path = None
    try:
        path = cache_directory() / "products.json"
        known = json.loads(path.read_text())
        if isinstance(known, dict) and isinstance(known.get(key), bool):
            return bool(known[key])
    except (OSError, ValueError, RuntimeError):  # the last: there is no home directory
        known = {}
    native, widened = _time_products(dtype)
    known = known if isinstance(known, dict) else {}
    known[key] = widened * _MARGIN < native
    if path is None:
        return bool(known[key])
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        partial.write_text(json.dumps(known, indent=2) + "\n")
        partial.replace(path)
    except OSError:  # it is measured again next time
        pass
    return bool(known[key])


def _time_products(dtype: torch.dtype) -> tuple[float, float]:
    """Seconds of the same product natively in `dtype` and widened; the best of a few."""
    weight, x = torch.randn(_WIDTH, _WIDTH).to(dtype), torch.randn(_ROWS, _WIDTH)
    narrow, matrix = x.to(dtype), StoredMatrix(weight)
    native, widened = [], []
    with torch.inference_mode():
        for _ in range(_TRIES):
            started = time.perf_counter()
            functional.linear(narrow, weight)
            between = time.perf_counter()
            product(x, matrix)
            native.append(between - started)
            widened.append(time.perf_counter() - between)
    return min(native), min(widened)
