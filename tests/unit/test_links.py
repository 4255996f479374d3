"""Symbolic links in a checkpoint: followed inside its directory, refused and reported where they lead out."""

from pathlib import Path

import pytest

from filmstrip.checkpoint.convert import ConvertOptions, convert
from filmstrip.checkpoint.pku_towers import TowerSources
from filmstrip.checkpoint.read import read_checkpoint
from filmstrip.diagnostics.doctor import Diagnosis, diagnose
from filmstrip.errors import CheckpointError
from filmstrip.testing.original import Place, original_config, write_original_checkpoint
from filmstrip.testing.tiny import write_tiny_checkpoint
from filmstrip.text.tokenizer import Tokenizer
from filmstrip.text.tokenizer_files import read_tokenizer_files

OUTSIDE = "link to something outside its directory"
CONFIG = original_config(torch_dtype="float32")


def found(diagnosis: Diagnosis) -> list[tuple[str, str]]:
    return [(finding.code, finding.subject) for finding in diagnosis.findings if finding.severity != "note"]


def link_out(path: Path, elsewhere: Path) -> None:
    """Move a file or directory out of its checkpoint and leave a link to it."""
    elsewhere.parent.mkdir(exist_ok=True)
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"])
def test_tokenizer_files_that_lead_out_are_not_read(tmp_path: Path, name: str) -> None:
    directory = tmp_path / "checkpoint"
    write_tiny_checkpoint(directory)
    (directory / "special_tokens_map.json").write_text("{}")
    link_out(directory / name, tmp_path / "elsewhere" / name)
    with pytest.raises(CheckpointError, match=OUTSIDE):
        Tokenizer.from_directory(directory)
    with pytest.raises(CheckpointError, match=OUTSIDE):
        convert(directory, ConvertOptions())
    assert found(diagnose(directory)) == [("link-outside", name)]


def test_a_sentencepiece_file_that_leads_out_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "tokenizer.model").write_bytes(b"anything")
    (tmp_path / "checkpoint" / "tokenizer.model").symlink_to(tmp_path / "tokenizer.model")
    with pytest.raises(CheckpointError, match=OUTSIDE):
        read_tokenizer_files(tmp_path / "checkpoint")


@pytest.mark.parametrize("name", ["LICENSE", "README.md", "chat_template.jinja"])
def test_what_a_conversion_carries_along_does_not_lead_out(tmp_path: Path, name: str) -> None:
    directory = tmp_path / "checkpoint"
    write_tiny_checkpoint(directory)
    (tmp_path / name).write_text("{{ messages }}")
    (directory / name).unlink(missing_ok=True)
    (directory / name).symlink_to(tmp_path / name)
    with pytest.raises(CheckpointError, match=OUTSIDE):
        convert(directory, ConvertOptions())


def test_links_inside_the_directory_are_followed(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path)
    link_out(tmp_path / "tokenizer.json", tmp_path / "files" / "tokenizer.json")
    assert diagnose(tmp_path).sound
    assert Tokenizer.from_directory(tmp_path).vocab_size


@pytest.mark.parametrize("tower", ["image_tower", "video_tower"])
@pytest.mark.parametrize("towers", ["main", "inside", "both"])
def test_tower_directories_that_lead_out_are_not_entered(tmp_path: Path, towers: Place, tower: str) -> None:
    directory, elsewhere = tmp_path / "checkpoint", tmp_path / "elsewhere" / tower
    write_original_checkpoint(directory, config=CONFIG, towers=towers)
    link_out(directory / tower, elsewhere)
    with pytest.raises(CheckpointError, match=f"{tower} is a {OUTSIDE}"):
        read_checkpoint(directory)
    assert found(diagnose(directory)) == [("link-outside", tower)]
    given = TowerSources(**{tower: elsewhere})
    assert diagnose(directory, towers=given).sound
    assert read_checkpoint(directory, given).config.family == "video-llava"


def test_both_tower_directories_that_lead_out_are_reported(tmp_path: Path) -> None:
    directory = tmp_path / "checkpoint"
    write_original_checkpoint(directory, config=CONFIG, towers="inside")
    for tower in ("image_tower", "video_tower"):
        link_out(directory / tower, tmp_path / "elsewhere" / tower)
    assert found(diagnose(directory)) == [("link-outside", "image_tower"), ("link-outside", "video_tower")]
