"""Writing videos: the same frames give the same file, on every processor."""

from pathlib import Path

import numpy as np
import pytest

from filmstrip.errors import MediaError
from filmstrip.media import encode
from filmstrip.media.encode import write_video
from filmstrip.training.world_files import WorldPlan, make_item
from filmstrip.world import draw_clip


def drawn(frames: int, size: int) -> np.ndarray:
    """A clip of the world, in front of noise in a photograph's place: (F, Y, X, 3)."""
    photos = [np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)]
    scene, _ = make_item(WorldPlan(clips=1, size=size, frames=frames), "video", 0, photos)
    return draw_clip(scene, size, photos)


def test_the_encoder_chooses_nothing_by_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain C and whatever this processor offers write the same bytes; the encoder's default does not."""
    frames = drawn(32, 64)
    write_video(tmp_path / "fast.mp4", frames)
    plain = {**encode._OPTIONS, "x264-params": "asm=0"}
    monkeypatch.setattr(encode, "_OPTIONS", plain)
    write_video(tmp_path / "plain.mp4", frames)
    assert (tmp_path / "fast.mp4").read_bytes() == (tmp_path / "plain.mp4").read_bytes()


def test_a_place_that_does_not_exist_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="cannot write a video here"):
        write_video(tmp_path / "nowhere" / "clip.mp4", drawn(8, 32))
