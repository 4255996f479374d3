"""What is run: which workloads on which models, and what of it this machine has room for."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

from filmstrip.cache import kv_cache_bytes
from filmstrip.config import ModelConfig
from filmstrip.config.checks import require, require_choice
from filmstrip.diagnostics.bench.peer import LLAMA, OURS, THEIRS
from filmstrip.diagnostics.bench.sizes import NAMES, PRECISIONS, SIZES, model_bytes, plain_dtype, tower_bytes
from filmstrip.diagnostics.bench.workloads import STEPS, WORKLOADS, Workload
from filmstrip.diagnostics.params import PRECISION_BYTES

PEERS = (OURS, THEIRS, LLAMA)
_LLAMA_NEEDS = {"llama_cpp": "llama-cpp-python", "gguf": "gguf"}
NOT_RUN = "not run"  # begins what is said of a peer that there is no memory for
START_UP = "start-up"  # the workload that is no model's: commands, timed from their start
_TRAINED_IN = "float32"
_TRAINING_COPIES = 4  # weights, gradients and the optimizer's two averages
_USABLE = 0.9  # of the memory that is free


@dataclass(frozen=True)
class Part:
    """One model, and the names of the workloads (`WORKLOADS`) that are timed on it."""

    size: str
    dtype: str
    workloads: tuple[str, ...]

    @property
    def title(self) -> str:
        """How results call the model."""
        return f"{self.size} {self.dtype}"

    def dtype_of(self, peer: str) -> str:
        """What a peer is given: transformers has no weights of 8 or 4 bits here, and runs those that ours were made
        from."""
        return plain_dtype(self.dtype) if peer == THEIRS else self.dtype


_DECODING = ("decode-64", "decode-64x4", "decode-64x8", "decode-2100", "decode-2100x4", "decode-2100x8")
_LOADING = ("load-cold", "load-warm")
_READING = (*_LOADING, "vision", "prefill", *_DECODING, "second")
_FEW_BITS = ("load-warm", "decode-64", "decode-64x8", "decode-2100")
RESULTS = (
    Part("tiny", "float32", (*_READING, "train")),
    Part("S", "float32", (*_READING, "train", "train-compiled")),
    Part("M", "float32", _READING),
    Part("M", "bfloat16", (*_LOADING, "prefill", *_DECODING)),
    Part("M", "float16", ("decode-64", "decode-2100")),
    Part("M", "int8", _FEW_BITS),
    Part("M", "int4", _FEW_BITS),
)
"""The page of results: every row that the targets name, and every workload once in float32."""

LARGE = (
    Part("7B", "bfloat16", (*_LOADING, "vision", "decode-64")),
    Part("7B", "int8", ("load-warm", "decode-64")),
    Part("7B", "int4", ("load-warm", "decode-64")),
)
"""What is added on request: 27 GB are written. A prompt of the 7B takes the reference half an hour."""


def plan_product(
    sizes: Sequence[str], dtypes: Sequence[str], workloads: Sequence[str] | None = None
) -> tuple[Part, ...]:
    """Every size in every dtype with the same workloads; None: all that the dtype allows.

    Raises `ConfigError` for an unknown name, and for a training step of weights that are not float32.
    """
    for what, names, known in (
        ("size", sizes, NAMES),
        ("dtype", dtypes, PRECISIONS),
        ("workload", workloads or (), WORKLOADS),
    ):
        for name in names:
            require_choice(what, name, known)
    trains = [name for name in workloads or () if WORKLOADS[name].kind == "train"]
    narrow = [dtype for dtype in dtypes if dtype != _TRAINED_IN]
    require(not (trains and narrow), f"a training step is timed in {_TRAINED_IN} alone, not in {', '.join(narrow)}")
    return tuple(
        Part(size, dtype, tuple(workloads) if workloads is not None else _allowed(dtype))
        for size in sizes
        for dtype in dtypes
    )


def _allowed(dtype: str) -> tuple[str, ...]:
    return tuple(name for name, work in WORKLOADS.items() if work.kind != "train" or dtype == _TRAINED_IN)


def usable_peers(names: Sequence[str] | None) -> tuple[str, ...]:
    """The peers of these names; None: all, llama.cpp where its libraries are installed.

    Raises `ConfigError` for an unknown name, and for llama.cpp without them.
    """
    missing = [package for module, package in _LLAMA_NEEDS.items() if find_spec(module) is None]
    if names is None:
        return PEERS if not missing else (OURS, THEIRS)
    for name in names:
        require_choice("peer", name, PEERS)
    install = " ".join(missing)
    require(LLAMA not in names or not missing, f"{LLAMA} is not installed here (pip install {install})")
    return tuple(names)


def can(peer: str, decodes: bool) -> bool:
    """Whether a peer can do a workload: llama.cpp, which has the text tower alone, decodes and does nothing else."""
    return decodes or peer != LLAMA


def able(peer: str, workloads: Iterable[Workload]) -> list[Workload]:
    """Those of some workloads that a peer can do."""
    return [work for work in workloads if can(peer, work.kind == "decode")]


def choose_peers(part: Part, peers: Sequence[str], free: int | None) -> tuple[tuple[str, ...], dict[str, str]]:
    """The peers whose weights fit into `free` bytes of memory together (None: unknown), and why the others do not.

    All map their files, so the same file counts once; llama.cpp has one of its own, and is the first to be left out.
    Where not all of the others fit, this program runs alone.
    """
    if part.size not in SIZES or free is None:
        return tuple(peers), {}
    room = int(free * _USABLE)
    for left_out in ((), (LLAMA,), (LLAMA, THEIRS)):
        chosen = tuple(name for name in peers if name not in left_out)
        if weights_bytes(part, chosen) <= room:
            why = f"{NOT_RUN}: {_gigabytes(weights_bytes(part, peers))} of weights, {_gigabytes(free)} of memory free"
            return chosen, {name: why for name in peers if name not in chosen}
    return (), dict.fromkeys(peers, f"{_gigabytes(weights_bytes(part, peers))} of weights do not fit into memory")


def weights_bytes(part: Part, peers: Sequence[str]) -> int:
    """What the weights of some peers take in memory together; of the embedded model next to nothing."""
    config = SIZES.get(part.size)
    if config is None:
        return 0
    files = sum(model_bytes(config, dtype) for dtype in {part.dtype_of(name) for name in peers if name != LLAMA})
    return files + (tower_bytes(config, part.dtype) if LLAMA in peers else 0)


def shortage(part: Part, config: ModelConfig, workload: Workload, kept: dict[str, str], free: int | None) -> str:
    """Why there is no room for a workload beside the weights, or nothing. `kept` is the precision of keys and values by
    peer."""
    needed = weights_bytes(part, [*kept])
    if workload.kind == "train":
        needed = _TRAINING_COPIES * len(kept) * model_bytes(config, part.dtype)
    elif workload.kind == "decode":
        slots = workload.context + STEPS
        bytes_each = [PRECISION_BYTES[precision] for precision in kept.values()]
        needed += sum(kv_cache_bytes(config.text, workload.batch, slots, each) for each in bytes_each)
    if free is None or needed <= free * _USABLE:
        return ""
    return f"left out: it needs about {_gigabytes(needed)} of memory, {_gigabytes(free)} are free"


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
