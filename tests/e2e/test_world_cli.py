"""`filmstrip world`: show, export, import."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from tests.e2e.helpers import installed_data, refused, run, succeed


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five clips and three pictures."""
    installed_data("skimage")
    path = tmp_path_factory.mktemp("world") / "small"
    content = succeed("world", "export", path, "--clips", "5", "--images", "3", "--size", "64", "--json").json
    assert (content["clips"], content["images"]) == (5, 3)
    assert sum(content["questions"].values()) == questions_in(path)
    return path


def questions_in(path: Path) -> int:
    records = json.loads((path / "conversations.json").read_text())
    return sum(len(record["conversations"]) // 2 for record in records)


def test_show_prints_the_truth_and_writes_a_contact_sheet(tmp_path: Path) -> None:
    installed_data("skimage")
    result = succeed("world", "show", "--seed", "7", "--out", tmp_path)
    assert result.out.startswith("There ") and "backwards" in result.out
    assert Image.open(tmp_path / "test-7.png").width > 8 * 100
    assert f"contact sheet: {tmp_path / 'test-7.png'}" in result.err
    content = succeed("world", "show", "--seed", "7", "--out", tmp_path, "--json").json
    assert result.out.startswith(content["description"])
    assert {"text", "answer", "reversed_answer", "family", "phrasing"} <= set(content["questions"][0])
    assert len(content["scene"]["shapes"]) >= 1


@pytest.mark.parametrize("plot", ["plain", "arrivals", "speed", "recolour", "events", "bounces"])
def test_show_any_plot_without_photographs(plot: str, tmp_path: Path) -> None:
    content = succeed("world", "show", "--plot", plot, "--no-photos", "--out", tmp_path, "--json").json
    assert content["scene"]["plot"] == plot
    assert Path(content["sheet"]).is_file()


def test_import_reads_an_export_back(world: Path) -> None:
    content = succeed("world", "import", world, "--json").json
    assert (content["clips"], content["images"], content["damaged"]) == (5, 3, [])
    assert sum(content["questions"].values()) == questions_in(world)
    assert f"{world}: 5 clips, 3 images, {questions_in(world)} questions" in succeed("world", "import", world).out


def test_a_damaged_clip_is_a_finding(tmp_path: Path) -> None:
    succeed("world", "export", tmp_path / "w", "--clips", "2", "--size", "64", "--no-photos")
    (tmp_path / "w" / "clips" / "000001.mp4").write_bytes(b"not a clip")
    result = run("world", "import", tmp_path / "w", "--json")
    assert result.code == 1
    (damage,) = result.json["damaged"]
    assert "000001" in damage


def test_families_can_be_chosen(tmp_path: Path) -> None:
    arguments = ["--clips", "3", "--size", "32", "--families", "events, bounces", "--no-photos", "--json"]
    content = succeed("world", "export", tmp_path / "w", *arguments).json
    assert set(content["questions"]) <= {"events", "bounces"} and content["questions"]


def test_training_data_in_one_breath(world: Path) -> None:
    """The export is what the training's own reader takes."""
    from filmstrip.training.records import parse_record, read_records

    records = [parse_record(raw) for raw in read_records([world / "conversations.json"])]
    assert [record.media[0][0] for record in records] == ["video"] * 5 + ["image"] * 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["show", "--plot", "camra"], "did you mean 'camera'"),
        (["show", "--plot", "camera", "--no-photos"], "needs photographs"),
        (["show", "--split", "dev"], "unknown split 'dev'"),
        (["export", "w", "--clips", "1", "--families", "colors"], "did you mean 'colour'"),
        (["export", "w", "--clips", "0"], "nothing to draw"),
        (["export", "w", "--clips", "1", "--size", "9"], "must be even"),
        (["import", "nowhere"], "is no exported world"),
        (["import"], "Missing argument 'DIR'"),
    ],
)
def test_bad_input(arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert words in refused("world", *arguments)
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize("verb", ["show", "export", "import"])
def test_help_has_an_example_and_fits_the_terminal(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    result = succeed("world", verb, "--help")
    assert re.search(rf"^ Examples *\n filmstrip world {verb} ", result.out, re.MULTILINE), result.out
    assert max(map(len, result.out.splitlines())) <= 80 and "…" not in result.out
