"""Random checkpoints and small media, made once for all end-to-end tests."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from filmstrip.api import Assistant, load
from filmstrip.testing.tiny import write_tiny_checkpoint
from tests.e2e.helpers import encode, moving_square


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights without temporal attention, layout A."""
    path = tmp_path_factory.mktemp("checkpoints") / "plain"
    write_tiny_checkpoint(path)
    return path


@pytest.fixture(scope="session")
def temporal_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights with temporal attention over 8 frames."""
    path = tmp_path_factory.mktemp("checkpoints") / "temporal"
    write_tiny_checkpoint(path, temporal_frames=8)
    return path


@pytest.fixture(scope="session")
def assistant(checkpoint: Path) -> Assistant:
    """The plain checkpoint, loaded."""
    return load(checkpoint, quiet=True)


@pytest.fixture(scope="session")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `clip.mp4` (24 frames), `other.mp4` (12 frames), `photo.png` and `wide.jpg`."""
    folder = tmp_path_factory.mktemp("media")
    encode(folder / "clip.mp4", moving_square())
    encode(folder / "other.mp4", moving_square(12)[::-1])
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(folder / "photo.png")
    Image.fromarray(rng.integers(0, 256, (30, 90, 3), dtype=np.uint8)).save(folder / "wide.jpg")
    return folder


@pytest.fixture
def clip(media: Path) -> Path:
    return media / "clip.mp4"


@pytest.fixture
def photo(media: Path) -> Path:
    return media / "photo.png"
