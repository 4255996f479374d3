"""The world as files: what is read back is what was drawn, a stopped export goes on, and damage is said."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from filmstrip.errors import ConfigError
from filmstrip.media import FrameSelection, load_media
from filmstrip.training import world_files
from filmstrip.training.records import DataError
from filmstrip.training.world_files import CONVERSATIONS, TRUTH, WorldPlan, export_world, make_item, read_world
from filmstrip.world import draw_clip

PLAN = WorldPlan(clips=4, images=2, size=64, frames=16, seed=3, questions=5)


@pytest.fixture(autouse=True)
def photos(monkeypatch):
    """Stands in for scikit-image's."""
    rng = np.random.default_rng(0)
    cells = [rng.integers(0, 256, (6, 8, 3), dtype=np.uint8) for _ in range(2)]
    pictures = [np.kron(cell, np.ones((20, 20, 1), np.uint8)) for cell in cells]
    monkeypatch.setattr(world_files, "world_photos", lambda split: pictures)
    return pictures


def test_it_reads_back_the_same_questions_and_frames(tmp_path, photos):
    done = []
    counts = export_world(tmp_path / "world", PLAN, done.append)
    assert sum(done) == 6
    items = list(read_world(tmp_path / "world"))
    assert [item.kind for item in items] == ["video"] * 4 + ["image"] * 2
    assert len({item.id for item in items}) == 6
    assert sum(counts.values()) == sum(len(item.questions) for item in items)
    for place, item in enumerate(items):
        scene, questions = make_item(PLAN, item.kind, place % 4, photos)
        assert list(item.questions) == questions and item.plot == scene.plot
        frames = draw_clip(scene, 64, photos)
        read = load_media(item.path, FrameSelection(num_frames=16)).frames
        assert read.shape == frames.shape
        if item.kind == "image":
            np.testing.assert_array_equal(read, frames)
        luma = np.array([0.299, 0.587, 0.114])  # a codec keeps colours at half the resolution only
        assert np.abs(read @ luma - frames @ luma).mean() < 3


def test_conversations_are_llavas_format(tmp_path):
    export_world(tmp_path, PLAN)
    records = json.loads((tmp_path / CONVERSATIONS).read_text())
    for record in records:
        kind = "video" if "video" in record else "image"
        assert set(record) == {"id", kind, "conversations"}
        assert (tmp_path / record[kind]).is_file()
        assert [turn["from"] for turn in record["conversations"]] == ["human", "gpt"] * (
            len(record["conversations"]) // 2
        )
        placeholders = [turn["value"].count(f"<{kind}>") for turn in record["conversations"]]
        assert placeholders == [1] + [0] * (len(placeholders) - 1)
        assert record["conversations"][0]["value"].startswith(f"<{kind}>\n")


def test_a_stopped_export_goes_on_and_grows(tmp_path, photos):
    class StopError(Exception):
        pass

    def stop(done):
        stop.seen += done
        if stop.seen == 3:
            raise StopError

    stop.seen = 0
    with pytest.raises(StopError):
        export_world(tmp_path, PLAN, stop)
    assert not (tmp_path / CONVERSATIONS).exists()
    with pytest.raises(DataError, match="unfinished export"):
        list(read_world(tmp_path))
    first = tmp_path / "clips" / "000000.mp4"
    written = first.stat().st_mtime_ns
    export_world(tmp_path, PLAN)
    assert first.stat().st_mtime_ns == written
    before = [item.questions for item in read_world(tmp_path)]
    export_world(tmp_path, replace(PLAN, clips=5))
    after = [item.questions for item in read_world(tmp_path)]
    assert len(after) == 7 and after[:4] == before[:4] and after[5:] == before[4:]
    assert not list(tmp_path.rglob(".partial*"))
    conversations = (tmp_path / CONVERSATIONS).read_bytes()
    with pytest.raises(DataError, match="holds 5 clips: ask for no fewer"):
        export_world(tmp_path, PLAN)
    assert (tmp_path / CONVERSATIONS).read_bytes() == conversations


def test_other_worlds_and_other_directories_are_left_alone(tmp_path):
    export_world(tmp_path / "one", PLAN)
    with pytest.raises(DataError, match="another world: it differs in seed, size"):
        export_world(tmp_path / "one", replace(PLAN, seed=4, size=66))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(DataError, match="not empty"):
        export_world(tmp_path / "other", PLAN)
    with pytest.raises(DataError, match="no exported world"):
        list(read_world(tmp_path / "other"))
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot write"):
        export_world(tmp_path / "file" / "below", PLAN)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda record, truth: record.update(video="../../etc/passwd"), "outside the media root"),
        (lambda record, truth: record.update(video="clips/9.mp4"), "missing file"),
        (lambda record, truth: record["conversations"][1].update(value="no idea"), "do not agree"),
        (lambda record, truth: truth.pop(record["id"]), "says nothing about it"),
        (lambda record, truth: truth[record["id"]]["questions"][0].pop("family"), "other than a question"),
        (lambda record, truth: truth[record["id"]]["questions"][0].update(facts=[1]), "other than a question"),
    ],
)
def test_contradictions_are_one_line_errors(tmp_path, change, words):
    export_world(tmp_path, PLAN)
    records, truth = (json.loads((tmp_path / name).read_text()) for name in (CONVERSATIONS, TRUTH))
    change(records[0], truth)
    (tmp_path / CONVERSATIONS).write_text(json.dumps(records))
    (tmp_path / TRUTH).write_text(json.dumps(truth))
    with pytest.raises(DataError, match=words) as caught:
        list(read_world(tmp_path))
    assert "\n" not in str(caught.value)


def test_plans_are_checked(monkeypatch):
    for wrong, words in [
        ({"split": "dev"}, "unknown split"),
        ({"families": ("colors",)}, "did you mean 'colour'"),
        ({"clips": 0, "images": 0}, "nothing to draw"),
        ({"size": 65}, "must be even"),
        ({"frames": 12}, "multiple of 8"),
        ({"questions": 0}, "1 to 100"),
        ({"seed": -1}, "negative"),
    ]:
        with pytest.raises(ConfigError, match=words):
            replace(PLAN, **wrong)
    monkeypatch.setattr(world_files, "_TRIES", 20)
    with pytest.raises(ConfigError, match="no image has a question"):
        make_item(replace(PLAN, families=("cut",)), "image", 0, [])
    with pytest.raises(ConfigError, match="without photographs"):
        make_item(replace(PLAN, families=("cut",)), "video", 0, [])


def test_pictures_are_png_and_the_split_decides(tmp_path):
    export_world(tmp_path / "train", PLAN)
    export_world(tmp_path / "test", replace(PLAN, split="test"))
    assert Image.open(tmp_path / "train" / "images" / "000000.png").size == (64, 64)
    train, test = (next(read_world(tmp_path / split)) for split in ("train", "test"))
    assert train.questions != test.questions and train.id.startswith("train-3-video")
