"""Names of models: bundled, a path, a hub id; offline is one clear line."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import huggingface_hub.errors
import huggingface_hub.utils
import pytest

from filmstrip.checkpoint import resolve as module
from filmstrip.checkpoint.resolve import fetch, is_hub_id, resolve
from filmstrip.errors import CheckpointError


def one_line(name: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        resolve(name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve(tmp_path) == tmp_path
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve("owner/name") == Path("owner/name"), "a directory comes before the hub"
    (tmp_path / "file").write_text("x")
    assert "is a file; a checkpoint is a directory" in one_line(str(tmp_path / "file"))


@pytest.mark.parametrize("name", ["./nope", "nope", "/x/y", "a/../b", "a/b/c", "a b/c", "a/b\n", "", "~x/y", "../x"])
def test_names_that_mean_nothing(name: str) -> None:
    assert "not a directory, not a hub id (owner/name), not bundled (tiny)" in one_line(name)


def test_a_name_that_is_far_too_long() -> None:
    message = one_line("x" * 100_000)
    assert "cannot open 'xxx" in message and len(message) < 300


def test_the_bundled_model_comes_from_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "assets" / "tiny").mkdir(parents=True)
    monkeypatch.setattr(module.importlib.resources, "files", lambda package: tmp_path)
    assert resolve("tiny") == tmp_path / "assets" / "tiny"
    (tmp_path / "assets" / "tiny").rmdir()
    assert "missing from this installation" in one_line("tiny")


def test_offline_with_nothing_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    message = one_line("nobody/nothing-at-all")
    assert message.startswith("nobody/nothing-at-all is not a directory here nor in the hub's cache")


class Hub:
    """Stands in for the hub's client: what it is asked, and what it answers."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, answer: Exception | None = None, files: tuple[str, ...] = ()
    ) -> None:
        self.calls: list[dict[str, Any]] = []

        def model_info(api: Any, repo_id: str, **options: Any) -> SimpleNamespace:
            self.calls.append(options)
            if answer is not None:
                raise answer
            return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in files])

        def snapshot_download(repo_id: str, **options: Any) -> str:
            self.calls.append(options)
            if options.get("local_files_only"):
                raise huggingface_hub.errors.LocalEntryNotFoundError("nothing cached")
            return "/cache/snapshot"

        monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)


FILES = (
    "config.json",
    "m.py",
    "chat_template.jinja",
    "tokenizer.model",
    "x.pt",
    "README.md",
    "image_tower/config.json",
)
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "optimizer.bin", "image_tower/pytorch_model.bin")
SAFE = ("model.safetensors", "original/a.safetensors", "video_tower/model.safetensors", "video_tower/x/y.json")


def fetched(monkeypatch: pytest.MonkeyPatch, files: tuple[str, ...], **options: Any) -> list[str]:
    """What a repository of these files would be downloaded as, by the client's own filter."""
    hub = Hub(monkeypatch, files=files)
    assert (fetch("owner/name", **options) if options else resolve("owner/name")) == Path("/cache/snapshot")
    assert 0 < hub.calls[0]["timeout"] <= 5
    patterns = hub.calls[1]["allow_patterns"]
    return sorted(huggingface_hub.utils.filter_repo_objects(files, allow_patterns=patterns))


def test_only_files_that_are_read_are_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    known = ["chat_template.jinja", "config.json", "image_tower/config.json", "tokenizer.model"]
    safe = ["model.safetensors", "video_tower/model.safetensors"]
    assert fetched(monkeypatch, FILES + SAFE) == sorted(known + safe)
    assert fetched(monkeypatch, FILES, weights=False) == ["config.json"]


def test_pickles_are_fetched_only_where_there_is_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = fetched(monkeypatch, FILES + PICKLES)
    assert [name for name in alone if name.endswith(".bin")] == ["image_tower/pytorch_model.bin", "pytorch_model.bin"]
    beside = fetched(monkeypatch, FILES + PICKLES + SAFE)
    assert [name for name in beside if name.endswith(".bin")] == ["image_tower/pytorch_model.bin"]


def test_hub_ids_are_not_paths() -> None:
    assert is_hub_id("LanguageBind/LanguageBind_Video_merge")
    assert not any(is_hub_id(name) for name in ("/etc/x", "../x", "a/../b", "./a/b", "a", "a/b/c", "C:/x", "a/..b"))


def hub_error(kind: str) -> Exception:
    """An error of the hub's client, made without the HTTP response that its constructor wants."""
    error_class = getattr(huggingface_hub.errors, kind)
    error: Exception = error_class.__new__(error_class, "a\nlong story")
    return error


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (hub_error("GatedRepoError"), "is gated"),
        (hub_error("RepositoryNotFoundError"), "neither a directory here nor a (public) repository"),
        (TimeoutError("timed\nout"), "the hub cannot be reached (timed out)"),
        (RuntimeError(), "the hub cannot be reached (RuntimeError)"),
    ],
)
def test_hub_errors_are_one_line(monkeypatch: pytest.MonkeyPatch, answer: Exception, words: str) -> None:
    Hub(monkeypatch, answer)
    assert words in one_line("owner/name")
