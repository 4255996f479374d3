"""Run the command line inside the test process, and make the media that the end-to-end tests ask about."""

import importlib.util
import io
import json
import struct
import subprocess
import sys
import zlib
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import av
import numpy as np
import pytest

import filmstrip

ASSETS = Path(filmstrip.__file__).parent / "assets"
needs_bundled_model = pytest.mark.skipif(
    not (ASSETS / "tiny").is_dir(), reason="the bundled model (src/filmstrip/assets/tiny) is not there yet"
)


@dataclass(frozen=True)
class Result:
    """What a run of the command line left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """Standard output, which must be exactly one JSON object on one line."""
        assert self.out.endswith("}\n") and self.out.count("\n") == 1, self.out
        content = json.loads(self.out)
        assert isinstance(content, dict)
        return content


def run(*arguments: str | Path, stdin: str = "") -> Result:
    """Call `filmstrip ARGUMENTS` in this process; whatever it raises but SystemExit fails the test."""
    from filmstrip.cli.main import main

    out, err = io.StringIO(), io.StringIO()
    argv = ["filmstrip", *(str(argument) for argument in arguments)]
    with (
        mock.patch.object(sys, "argv", argv),
        mock.patch.object(sys, "stdin", io.StringIO(stdin)),
        redirect_stdout(out),
        redirect_stderr(err),
        pytest.raises(SystemExit) as stopped,
    ):
        main()
    code = stopped.value.code
    return Result(code if isinstance(code, int) else int(code is not None), out.getvalue(), err.getvalue())


def succeed(*arguments: str | Path, stdin: str = "") -> Result:
    """Like `run`, for a call that must end well."""
    result = run(*arguments, stdin=stdin)
    assert result.code == 0, result.err
    return result


def refused(*arguments: str | Path, stdin: str = "") -> str:
    """Like `run`, for bad input: exit code 2, nothing on stdout, one line on stderr, which is returned."""
    result = run(*arguments, stdin=stdin)
    assert (result.code, result.out) == (2, ""), result
    assert result.err.startswith("filmstrip: ") and result.err.count("\n") == 1 and result.err.endswith("\n"), result
    return result.err.removeprefix("filmstrip: ").rstrip("\n")


def spawn(*arguments: str | bytes | Path, stdin: bytes = b"") -> "subprocess.CompletedProcess[bytes]":
    """Run `filmstrip ARGUMENTS` as a user does, in a process of its own."""
    command = [sys.executable, "-m", "filmstrip.cli.main", *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, timeout=120, check=False)


def moving_square(count: int = 24, height: int = 48, width: int = 64) -> list[np.ndarray]:
    """Frames (Y, X, 3): a red square that moves right over grey, every frame different."""
    frames = []
    for number in range(count):
        frame = np.full((height, width, 3), 90, dtype=np.uint8)
        frame[16:32, 2 * number : 2 * number + 12] = (220, 30, 30)
        frames.append(frame)
    return frames


def encode(path: Path, frames: Sequence[np.ndarray], codec: str = "libx264", rate: int = 8, **options: str) -> Path:
    """Write frames as a video file."""
    pix_fmt = "rgb8" if codec == "gif" else "yuv420p"
    with av.open(str(path), "w", options=options) as container:
        stream: Any = container.add_stream(codec, rate=rate)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pix_fmt
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            container.mux(stream.encode(picture.reformat(format=pix_fmt)))
        container.mux(stream.encode())
    return path


def write_audio(path: Path) -> Path:
    """A file with sound and no picture."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("aac", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16_000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def png_header(path: Path, width: int, height: int) -> Path:
    """A PNG that announces `width` x `height` pixels and holds next to none of them."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(3 * width + 1))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b""))
    return path


def decode_all(path: Path, wanted: Sequence[int] = ()) -> tuple[list[float], dict[int, np.ndarray]]:
    """Every frame's time, and the pixels of the wanted ones, by decoding from the start with PyAV alone."""
    times: list[float] = []
    kept: dict[int, np.ndarray] = {}
    with av.open(str(path)) as container:
        for number, frame in enumerate(container.decode(video=0)):
            assert frame.time is not None
            times.append(frame.time)
            if number in wanted:
                kept[number] = frame.to_ndarray(format="rgb24")
    return [time - times[0] for time in times], kept


def installed_data(package: str, *parts: str) -> Path:
    """A folder of data inside an installed package, without importing it; skips the test when it is not there."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        pytest.skip(f"{package} is not installed; `make test` installs it")
    return Path(found.submodule_search_locations[0]).joinpath(*parts)
