"""`diagnose`: all checks over one directory, in the order in which a reader meets the files."""

import time
from pathlib import Path
from typing import Any

from filmstrip.checkpoint.describe import describe, dtype_names, model_title, short_count
from filmstrip.checkpoint.files import TensorReader, has_weights
from filmstrip.checkpoint.pku_config import TOWER_KEYS
from filmstrip.checkpoint.pku_towers import IN_CHECKPOINT, TowerSources
from filmstrip.checkpoint.quantization import MANIFEST_FILE, expect_quantised, read_manifest
from filmstrip.checkpoint.read import read_any
from filmstrip.checkpoint.resolve import resolve
from filmstrip.diagnostics.doctor.agreement import check_agreement
from filmstrip.diagnostics.doctor.copies import check_copies
from filmstrip.diagnostics.doctor.findings import Diagnosis, Findings
from filmstrip.diagnostics.doctor.names import Expected, compare_parameters
from filmstrip.diagnostics.doctor.prompts import check_prompts
from filmstrip.diagnostics.doctor.recognise import Matched, recognise, title
from filmstrip.diagnostics.doctor.settings import Settings, read_settings
from filmstrip.diagnostics.doctor.values import Progress, check_values, read_contents
from filmstrip.diagnostics.doctor.vocabulary import check_vocabulary
from filmstrip.diagnostics.doctor.weights import Stored, add_unreadable, find_pointers, reason, survey
from filmstrip.errors import CheckpointError, FilmstripError
from filmstrip.links import LinkError, leads_outside
from filmstrip.models.weightless import build_meta

EMBEDDING, HEAD = "token_embedding.weight", "lm_head.weight"


def diagnose(
    directory: Path,
    *,
    values: bool = True,
    towers: TowerSources | None = None,
    on_progress: Progress | None = None,
) -> Diagnosis:
    """Examine a checkpoint directory and go on after every problem.

    `values` False reads headers and configuration files only. `towers` say where the vision towers of the original
    release lie, if not inside the directory. `on_progress` is called with bytes read and in all. Raises
    `CheckpointError` when there is nothing that could be examined: no directory, or neither a config.json nor weights
    in it. Memory stays at a few blocks of 4 MiB besides the headers.
    """
    started = time.perf_counter()
    try:
        diagnosis = _diagnose(directory, values, towers or TowerSources(), on_progress)
    except OSError as error:
        raise CheckpointError(f"cannot read {directory}: {error.strerror or error}") from error
    diagnosis.facts["seconds"] = round(time.perf_counter() - started, 3)
    return diagnosis


def _diagnose(directory: Path, values: bool, towers: TowerSources, on_progress: Progress | None) -> Diagnosis:
    if not directory.is_dir():
        raise CheckpointError(f"{directory} is not a directory")
    findings = Findings()
    find_pointers(directory, findings)
    stored = survey(directory, findings)
    settings = read_settings(directory, towers, findings)
    if settings.nothing and not stored.files:
        raise CheckpointError(f"{directory} has neither a config.json nor weights; it is not a checkpoint")
    matched = recognise(stored, settings.family, findings)
    if settings.original:
        _add_towers(directory, towers, stored, matched, findings)
    expected = _expected(directory, settings, findings)
    compare_parameters(stored, matched, expected, findings)
    check_agreement(settings, _dtypes(stored, matched), _has_head(matched), findings)
    check_vocabulary(settings, _rows(stored, matched), findings)
    check_prompts(settings, findings)
    if values:
        contents = read_contents(stored, matched, findings, on_progress)
        check_values(stored, matched, contents, findings)
        check_copies(stored, matched, expected, contents, findings, copied_towers=settings.copied_towers)
    if not findings.errors:
        _try_reader(directory, towers, findings)
    facts = _facts(directory, settings, stored, matched, expected, values)
    return Diagnosis(_sentence(settings, stored, matched, expected), findings.sorted(), facts)


def _expected(directory: Path, settings: Settings, findings: Findings) -> Expected | None:
    """The parameters of the model that is described, with the quantised layers of its manifest if it has one."""
    if settings.config is None:
        return None
    model = build_meta(settings.config)
    try:
        manifest = read_manifest(directory)
        if manifest is not None:
            expect_quantised(model, manifest, str(directory))
    except CheckpointError as error:
        findings.add("reader-refuses", MANIFEST_FILE, reason(error, directory))
    return Expected.of(model)


def _add_towers(directory: Path, towers: TowerSources, stored: Stored, matched: Matched, findings: Findings) -> None:
    """The original release's towers in directories of their own, where the checkpoint itself does not hold them."""
    for component in TOWER_KEYS:
        given = getattr(towers, component)
        place = directory / component if given is None else resolve(given)
        if given is None and leads_outside(place):
            if not findings.about(component):
                add_unreadable("link-outside", place, LinkError(place), findings)
            matched.elsewhere.add(component)
            continue
        if matched.holds(component):
            if place.is_dir() and has_weights(place):
                findings.add("tensors-left-out", f"{component}/", IN_CHECKPOINT)
            continue
        if not place.is_dir():
            what = "not in the checkpoint and not in a directory inside it; it is loaded from the hub id in config.json"
            findings.add("tower-elsewhere", component, what)
            matched.elsewhere.add(component)
            continue
        inside = findings.within(f"{component}/")
        find_pointers(place, inside)
        part = survey(place, inside)
        recognised = recognise(part, "clip", inside, f"{component}.")
        stored.include(part, f"{component}/")
        matched.include(recognised, f"{component}/")


def _rows(stored: Stored, matched: Matched) -> int | None:
    """Rows of the stored token embedding."""
    for name, entry in matched.entries.items():
        if entry.canonical.endswith(EMBEDDING) and stored.tensors[name].shape:
            return stored.tensors[name].shape[0]
    return None


def _has_head(matched: Matched) -> bool:
    """Whether a head of its own is stored, or should be in a file that cannot be read."""
    return any(name.endswith(HEAD) for name in (*matched.canonical.values(), *matched.lost))


def _try_reader(directory: Path, towers: TowerSources, findings: Findings) -> None:
    """Whatever the checks do not know of: a checkpoint that does not open is never called sound."""
    if findings.has("tower-elsewhere"):
        return  # opening it would download the tower
    try:
        checkpoint = read_any(directory, towers)
        for files, _ in checkpoint.parts:
            reader = TensorReader(files)
            for name in {info.path: name for name, info in files.tensors.items()}.values():
                reader.read(name)  # maps the file; no value is touched
    except FilmstripError as error:
        findings.add("reader-refuses", str(directory), reason(error, directory))


def _sentence(settings: Settings, stored: Stored, matched: Matched, expected: Expected | None) -> str:
    """What this is, as far as it can be told."""
    dtype = "/".join(_dtypes(stored, matched)) or "no weights"
    if settings.config is not None and expected is not None:
        if not stored.tensors:
            weights = "weights that cannot be read" if stored.files else "no weights"
            return f"{model_title(settings.config)}, {weights}, {short_count(expected.count)} parameters"
        layout = "no layout known here" if matched.layout is None else matched.layout.title
        return describe(settings.config, layout, dtype, expected.count)
    if matched.layout is not None:
        count = sum(stored.tensors[name].numel for name in matched.entries)
        problem = "it has no config.json" if settings.nothing else "its config.json cannot be used"
        return f"A checkpoint in the {title(matched.layout)}, {dtype}, {short_count(count)} parameters; {problem}"
    return "Not a checkpoint of a model known here" if stored.tensors else "A checkpoint without readable weights"


def _dtypes(stored: Stored, matched: Matched) -> list[str]:
    """torch's names of the dtypes of all tensors that are parameters."""
    names = dtype_names(stored.tensors[name] for name in matched.entries)
    return names.split("/") if names else []


def _facts(
    directory: Path,
    settings: Settings,
    stored: Stored,
    matched: Matched,
    expected: Expected | None,
    values: bool,
) -> dict[str, Any]:
    return {
        "directory": str(directory),
        "family": settings.family,
        "layout": None if matched.layout is None else matched.layout.name,
        "dtypes": _dtypes(stored, matched),
        "parameters": None if expected is None else expected.count,
        "tensors": len(stored.tensors),
        "bytes": stored.bytes,
        "files": [str(path).removeprefix(f"{directory}/") for path in stored.files],
        "examined": "values" if values else "headers",
    }
