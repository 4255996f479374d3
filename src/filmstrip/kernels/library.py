"""The shared library of the kernels: compiled on the machine that runs it, once, and left out where that cannot be.

There is no build at installation: what the compiler may use depends on the processor. The first process that could use
the library starts the compiler beside itself (some seconds) and goes on without; the next one finds it. The environment
variable `FILMSTRIP_KERNELS` changes that: `wait` for the compiler, `off` for no kernels.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import time
from functools import cache
from pathlib import Path

import torch  # its OpenMP threads are ours: the library asks for the same runtime and gets the one that is loaded

from filmstrip.config.checks import require_choice

SOURCES = ("step.cpp", "products.h")
MODES = ("background", "wait", "off")
_FLAGS = ("-O3", "-std=c++17", "-fPIC", "-shared", "-fopenmp", "-w")
_LIBRARY, _SIZE, _FAILED = "step.so", "step.so.size", "failed.log"
_TIMEOUT = 300.0


class Kernels:
    """The loaded library."""

    def __init__(self, path: Path) -> None:
        library = ctypes.CDLL(str(path))
        library.filmstrip_sizes.restype = ctypes.c_int64
        library.filmstrip_scratch.restype = ctypes.c_int64
        library.filmstrip_step.restype = None
        library.filmstrip_product.restype = None
        self.sizes: int = library.filmstrip_sizes()
        self.scratch, self.step, self.product = (
            library.filmstrip_scratch,
            library.filmstrip_step,
            library.filmstrip_product,
        )


def find_kernels(mode: str | None = None) -> tuple[Kernels | None, str]:
    """The kernels, or None, and why there are none (empty where that goes without saying).

    `mode` is one of `MODES`; by default what `FILMSTRIP_KERNELS` says, or `background`. Raises `ConfigError` for
    another one.
    """
    mode = mode or os.environ.get("FILMSTRIP_KERNELS") or "background"
    require_choice("FILMSTRIP_KERNELS", mode, MODES)
    return (None, "") if mode == "off" else _find(mode == "wait")


@cache
def _find(wait: bool) -> tuple[Kernels | None, str]:
    compiler = _compiler()
    if compiler is None:
        return None, "no C++ compiler (c++, g++ or clang++): decoding runs without compiled kernels"
    try:
        return _open(compiler, wait)
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:  # among them: there is no home directory
        return None, f"no compiled kernels: {error}"


def _open(compiler: str, wait: bool) -> tuple[Kernels | None, str]:
    directory = cache_directory() / f"kernels-{_fingerprint(compiler)}"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    status, own = directory.stat(), getattr(os, "getuid", lambda: 0)()
    if status.st_uid != own or status.st_mode & 0o022:
        return None, f"{directory} can be written by others: no library is loaded from there"
    if not _is_whole(directory):
        if (directory / _FAILED).is_file():
            return None, f"the kernels did not compile, see {directory / _FAILED}; remove it to try again"
        if wait or not _is_being_built(directory):
            _build(compiler, directory, wait)
        if not wait:
            return None, "compiling the kernels beside this (once); decoding uses them from the next start on"
    return Kernels(directory / _LIBRARY), ""


def _is_whole(directory: Path) -> bool:
    """Whether the library is there, of the size that the compiler gave it: one cut short would end this process."""
    library, size = directory / _LIBRARY, directory / _SIZE
    return library.is_file() and size.is_file() and size.read_text().strip() == str(library.stat().st_size)


def _is_being_built(directory: Path) -> bool:
    """Whether another process has a compiler running, which then wrote its file a short time ago."""
    started = [path.stat().st_mtime for path in directory.glob("*.partial")]
    return any(time.time() - moment < _TIMEOUT for moment in started)


def cache_directory() -> Path:
    """Where the program keeps what it can make again."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "filmstrip"


def _compiler() -> str | None:
    named = os.environ.get("CXX")
    return next((found for name in (named, "c++", "g++", "clang++") if name and (found := shutil.which(name))), None)


def _command(compiler: str, output: Path) -> list[str]:
    native = "-mcpu=native" if platform.machine() in ("arm64", "aarch64") else "-march=native"
    return [compiler, *_FLAGS, native, str(Path(__file__).parent / SOURCES[0]), "-o", str(output)]


def _fingerprint(compiler: str) -> str:
    """What decides whether a library fits: sources, compiler, flags, processor, PyTorch."""
    told = [torch.__version__, *_command(compiler, Path(_LIBRARY)), platform.platform(), processor_name()]
    told += [(Path(__file__).parent / name).read_text() for name in SOURCES]
    told.append(str(Path(compiler).resolve().stat().st_mtime_ns))
    return hashlib.sha256("\0".join(told).encode()).hexdigest()[:16]


def processor_name() -> str:
    """The processor's name and what it can do, as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "; ".join(sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))}))


def _build(compiler: str, directory: Path, wait: bool) -> None:
    """Compile; the library appears whole or not at all, and what a compiler complains of is kept."""
    handle, partial = tempfile.mkstemp(suffix=".partial", dir=directory)
    os.close(handle)
    log = f"{partial}.log"
    script = 'final=$1 size=$2 log=$3 failed=$4 partial=$5; shift 5; if "$@" >"$log" 2>&1; then '
    script += 'wc -c <"$partial" >"$size"; mv "$partial" "$final"; rm -f "$log"; '
    script += 'else mv "$log" "$failed"; rm -f "$partial"; exit 1; fi'
    names = [str(directory / name) for name in (_LIBRARY, _SIZE)] + [log, str(directory / _FAILED), partial]
    process = subprocess.Popen(
        ["sh", "-c", script, "sh", *names, *_command(compiler, Path(partial))],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # it goes on when this process ends
    )
    if wait and process.wait(_TIMEOUT):
        raise OSError(f"they did not compile, see {directory / _FAILED}; remove it to try again")
