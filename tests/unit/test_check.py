"""The doctor: every kind of finding is planted, and found where it was planted, with nothing beside it."""

import json
import os
import struct
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from filmstrip.checkpoint.read import read_checkpoint
from filmstrip.diagnostics.doctor import Diagnosis, Finding, diagnose
from filmstrip.diagnostics.doctor.catalogue import CATALOGUE, SEVERITIES
from filmstrip.diagnostics.doctor.findings import MAX_OF_A_KIND, MAX_SUBJECT, Findings
from filmstrip.diagnostics.doctor.values import BLOCK_BYTES
from filmstrip.errors import CheckpointError
from filmstrip.testing.tiny import (
    rename_state,
    tiny_hf_config,
    tiny_state,
    tiny_vocabulary_size,
    write_json,
    write_tiny_checkpoint,
)
from filmstrip.text.tokenizer import Tokenizer

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
HEAD = "language_model.lm_head.weight"
NORM = "language_model.model.norm.weight"
EMBEDDING = "language_model.model.embed_tokens.weight"
BLOCK = "language_model.model.layers.1"
TOWER = "image_tower.vision_model"
VOCABULARY = tiny_vocabulary_size()

Edit = Callable[[dict[str, torch.Tensor]], object]


def weights(directory: Path, edit: Edit) -> None:
    """Change the tensors of `model.safetensors` in place."""
    path = directory / WEIGHTS
    state = {name: tensor.clone() for name, tensor in load_file(path).items()}
    edit(state)
    save_file(state, path, {"format": "pt"})


def settings(directory: Path, file: str, **changes: Any) -> None:
    """Change keys of a JSON file; `text_config__x` is a key of a section; None removes one."""
    path = directory / file
    content = json.loads(path.read_text())
    for key, value in changes.items():
        *sections, last = key.split("__")
        place = content
        for section in sections:
            place = place[section]
        place.pop(last, None) if value is None else place.update({last: value})
    write_json(path, content)


def header(directory: Path, edit: Callable[[dict[str, Any]], object], file: str = WEIGHTS) -> None:
    """Change the header of a safetensors file and nothing else."""
    raw = (directory / file).read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    entries = json.loads(raw[8 : 8 + length])
    edit(entries)
    changed = json.dumps(entries).encode()
    (directory / file).write_bytes(struct.pack("<Q", len(changed)) + changed + raw[8 + length :])


def shards(directory: Path, **moves: str) -> None:
    """Split the weights in two files; `moves` change where the index places a tensor (`__` is a dot)."""
    state = load_file(directory / WEIGHTS)
    names = sorted(state)
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-{number:05d}-of-00002.safetensors"
        save_file({name: state[name].clone() for name in part}, directory / file, {"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    weight_map |= {name.replace("__", "."): file for name, file in moves.items()}
    (directory / WEIGHTS).unlink()
    write_json(directory / INDEX, {"metadata": {"total_size": 1}, "weight_map": weight_map})


def drop(state: dict[str, torch.Tensor], *names: str) -> None:
    for name in names:
        del state[name]


def swap_offsets(entries: dict[str, Any]) -> None:
    """Two tensors of one size in the same place: one overlaps, and a gap is left."""
    entries[f"{BLOCK}.self_attn.k_proj.weight"]["data_offsets"] = entries[f"{BLOCK}.self_attn.v_proj.weight"][
        "data_offsets"
    ]


def assembled(directory: Path) -> None:
    settings(directory, "config.json", filmstrip={"copied_towers": True})
    weights(directory, copy_tower)


def cut(directory: Path, count: int) -> None:
    with (directory / WEIGHTS).open("r+b") as file:
        file.truncate((directory / WEIGHTS).stat().st_size - count)


def twice_in_header(directory: Path) -> None:
    raw = b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'
    (directory / WEIGHTS).write_bytes(struct.pack("<Q", len(raw)) + raw + b"1")


def tensor_in_two_shards(directory: Path) -> None:
    shards(directory)
    path = directory / "model-00002-of-00002.safetensors"
    state = {name: tensor.clone() for name, tensor in load_file(path).items()}
    first = sorted(load_file(directory / "model-00001-of-00002.safetensors"))[0]
    save_file(state | {first: torch.ones(2)}, path)


def temporal(directory: Path, **section: Any) -> None:
    write_tiny_checkpoint(directory, tiny_hf_config(filmstrip=section or None), temporal_frames=3)


def temporal_zero_output(directory: Path) -> None:
    temporal(directory, temporal_attention=True, temporal_frames=3)
    name = "video_tower.vision_model.encoder.layers.1.temporal_attn.out_proj.weight"
    weights(directory, lambda state: state[name].zero_())


def copy(state: dict[str, torch.Tensor], source: str, destination: str) -> None:
    state[destination] = state[source].clone()


def copy_tower(state: dict[str, torch.Tensor], *left: str) -> None:
    for name in [name for name in state if name.startswith("image_tower.")]:
        twin = name.replace("image_tower", "video_tower")
        if not name.endswith(left or ("-",)):
            copy(state, name, twin)


def tied(directory: Path, *, equal: bool) -> None:
    write_tiny_checkpoint(directory, tiny_hf_config(tie_word_embeddings=True))
    embedding = load_file(directory / WEIGHTS)[EMBEDDING]
    weights(directory, lambda state: state.update({HEAD: embedding if equal else embedding + 1}))


def large(directory: Path) -> None:
    """A checkpoint with a matrix of more than two blocks, the middle of which is zero."""
    width = 3 * BLOCK_BYTES // (4 * 64)
    write_tiny_checkpoint(directory, tiny_hf_config(text_intermediate_size=width))
    weights(directory, lambda state: state[f"{BLOCK}.mlp.up_proj.weight"].view(-1)[BLOCK_BYTES // 4 :].zero_())


def directory_as_config(directory: Path) -> None:
    (directory / "config.json").write_text('{"model_type": ')


def replaced_placeholder(directory: Path) -> None:
    settings(directory, "config.json", image_token_index=VOCABULARY - 1)


def renamed(directory: Path) -> None:
    weights(directory, lambda state: [state.update({f"model.x.{name}": state.pop(name)}) for name in list(state)])


def half_converted(state: dict[str, torch.Tensor]) -> None:
    """The video tower under the names of layout C, everything else under those of A."""
    for name in [name for name in state if name.startswith("video_tower.vision_model.")]:
        state["model." + name.replace("vision_model.", "")] = state.pop(name)


def sister(directory: Path) -> None:
    config = tiny_hf_config()
    config |= {"model_type": "llava", "architectures": ["LlavaForConditionalGeneration"]}
    write_json(directory / "config.json", config)
    settings(directory, "preprocessor_config.json", image_processor_type="CLIPImageProcessor")


def larger_image(directory: Path, size: int, tokens: int) -> None:
    settings(directory, "config.json", vision_config__image_size=size, image_seq_length=tokens)
    settings(directory, "preprocessor_config.json", crop_size={"height": size, "width": size})


def remove(file: str) -> Callable[[Path], None]:
    return lambda directory: (directory / file).unlink()


def write(file: str, content: bytes) -> Callable[[Path], object]:
    return lambda directory: (directory / file).write_bytes(content)


def in_config(**changes: Any) -> Callable[[Path], None]:
    return lambda directory: settings(directory, "config.json", **changes)


def in_file(file: str, **changes: Any) -> Callable[[Path], None]:
    return lambda directory: settings(directory, file, **changes)


def tensors(edit: Edit) -> Callable[[Path], None]:
    return lambda directory: weights(directory, edit)


def outside(directory: Path) -> None:
    shards(directory, **{HEAD.replace(".", "__"): "../other.safetensors"})
    (directory.parent / "other.safetensors").write_bytes(b"never opened")


def leftover_shard(directory: Path) -> None:
    shards(directory)
    save_file({"a": torch.ones(1)}, directory / "old.safetensors")


def missing_shard(directory: Path) -> None:
    shards(directory)
    (directory / "model-00002-of-00002.safetensors").unlink()


def damaged_index(directory: Path) -> None:
    shards(directory)
    (directory / INDEX).write_text('{"weight_map": []}')


def link_out(file: str) -> Callable[[Path], None]:
    """Move a file out of the directory and leave a link to it; `model-...` is one of two shards."""

    def plant(directory: Path) -> None:
        if file.startswith("model-"):
            shards(directory)
        (directory / file).rename(directory.parent / f"elsewhere-{file}")
        (directory / file).symlink_to(directory.parent / f"elsewhere-{file}")

    return plant


def unused_temporal(directory: Path) -> None:
    temporal(directory)


def missing_temporal(directory: Path) -> None:
    settings(directory, "config.json", filmstrip={"temporal_attention": True, "temporal_frames": 3})


# Code, what plants it, where it must be found (part of subject or text). Only this error or warning may be found.
PLANTS: list[tuple[str, Callable[[Path], object], str]] = [
    ("weights-missing", remove(WEIGHTS), "neither"),
    ("lfs-pointer", write(WEIGHTS, POINTER), WEIGHTS),
    ("lfs-pointer", write("tokenizer.json", POINTER), "tokenizer.json"),
    ("lfs-pointer", write("config.json", POINTER), "config.json"),
    ("link-outside", link_out(WEIGHTS), WEIGHTS),
    ("link-outside", link_out("model-00002-of-00002.safetensors"), "model-00002-of-00002.safetensors"),
    ("link-outside", link_out("config.json"), "config.json"),
    ("link-outside", link_out("generation_config.json"), "generation_config.json"),
    ("link-outside", link_out("preprocessor_config.json"), "preprocessor_config.json"),
    ("file-damaged", write(WEIGHTS, b"<!DOCTYPE html><html>not found</html>"), "not a safetensors file"),
    ("file-damaged", write(WEIGHTS, b""), "0 bytes"),
    ("file-truncated", lambda directory: cut(directory, 1), "175 of 176 tensors are whole"),
    ("offsets-wrong", lambda directory: header(directory, swap_offsets), "gap"),
    ("duplicate-key", twice_in_header, "'a' twice"),
    ("duplicate-key", write("config.json", b'{"model_type": "a", "model_type": "b"}'), "config.json"),
    ("index-damaged", damaged_index, "weight_map"),
    ("index-entry-outside", outside, "../other.safetensors"),
    ("shard-missing", missing_shard, "model-00002-of-00002.safetensors"),
    (
        "tensor-not-in-shard",
        lambda directory: shards(directory, extra__weight="model-00001-of-00002.safetensors"),
        "extra.weight",
    ),
    (
        "tensor-misplaced",
        lambda directory: shards(directory, **{NORM.replace(".", "__"): "model-00002-of-00002.safetensors"}),
        NORM,
    ),
    ("tensor-in-two-shards", tensor_in_two_shards, "too"),
    ("file-not-indexed", leftover_shard, "old.safetensors"),
    ("weights-twice", write(INDEX, b"{}"), INDEX),
    ("layout-unknown", renamed, "model.x."),
    ("family-differs", sister, "Video-LLaVA"),
    ("layouts-mixed", tensors(half_converted), "transformers 5 layout (C)"),
    ("tensors-foreign", tensors(lambda state: state.update(optimizer=torch.ones(3))), "optimizer"),
    ("tensors-missing", tensors(lambda state: drop(state, HEAD)), HEAD),
    (
        "tensors-missing",
        tensors(lambda state: drop(state, *[name for name in state if "projector" in name])),
        "all 4 tensors",
    ),
    (
        "tensors-unexpected",
        tensors(lambda state: state.update({f"{BLOCK[:-1]}3.mlp.up_proj.weight": torch.randn(112, 64)})),
        "layers.3.mlp",
    ),
    ("shape-differs", tensors(lambda state: state.update({NORM: torch.ones(65)})), "shape (65,)"),
    ("position-table", lambda directory: larger_image(directory, 42, tokens=9), "2 x 2 patches"),
    ("dtype-unsupported", tensors(lambda state: state.update({NORM: torch.ones(64, dtype=torch.int8)})), "I8"),
    ("dtypes-mixed", tensors(lambda state: state.update({NORM: torch.ones(64).half()})), NORM),
    ("dtype-differs", in_config(torch_dtype="bfloat16"), "float32"),
    ("temporal-missing", missing_temporal, "44 tensors"),
    ("temporal-unused", unused_temporal, "17,536 parameters"),
    (
        "tensors-left-out",
        tensors(lambda state: state.update({f"{TOWER}.embeddings.position_ids": torch.arange(5)[None]})),
        "position_ids",
    ),
    ("config-missing", remove("config.json"), "config.json"),
    ("config-damaged", directory_as_config, "line 1"),
    ("config-unsupported", in_config(model_type="flamingo"), "flamingo"),
    ("config-unsupported", in_config(text_config__rope_scaling={"type": "yarn", "factor": 4.0}), "yarn"),
    ("processor-unusable", in_file("preprocessor_config.json", crop_size={"height": 42, "width": 42}), "42 pixels"),
    ("processor-unusable", write("chat_template.json", POINTER[:3]), "chat_template.json"),
    ("generation-unusable", in_file("generation_config.json", eos_token_id="</s>"), "generation_config.json"),
    (
        "processor-differs",
        lambda directory: write_json(directory / "processor_config.json", {"patch_size": 16}),
        "patch_size is 16",
    ),
    (
        "processor-differs",
        lambda directory: write_json(directory / "processor_config.json", {"vision_feature_select_strategy": "full"}),
        "vision_feature_select_strategy is 'full'",
    ),
    ("sequence-length", in_config(image_seq_length=9), "image_seq_length is 9"),
    ("sequence-length", in_config(video_seq_length=9), "video_seq_length is 9"),
    ("vocabulary-stated-twice", in_config(vocab_size=447), "447"),
    ("tie-stated-twice", in_config(tie_word_embeddings=False, text_config__tie_word_embeddings=True), "True"),
    ("special-ids-disagree", in_file("generation_config.json", eos_token_id=7), "eos_token_id is 7"),
    ("special-ids-disagree", in_file("generation_config.json", pad_token_id=0), "pad_token_id is 0"),
    ("special-ids-disagree", in_config(text_config__eos_token_id=[{}]), "[{}]"),
    ("inner-dtype", in_config(text_config__torch_dtype="float16"), "float16"),
    ("patch-remainder", lambda directory: larger_image(directory, 30, tokens=4), "30 pixels"),
    ("setting-ignored", in_file("generation_config.json", num_beams=4), "num_beams"),
    (
        "reader-warns",
        in_file("tokenizer_config.json", add_eos_token=True, tokenizer_class="PreTrainedTokenizerFast"),
        "add_eos_token",
    ),
    ("tokenizer-missing", remove("tokenizer.json"), "tokenizer.json"),
    ("tokenizer-unusable", write("tokenizer.json", b'{"model": {"type": "WordLevel"}}'), "BPE"),
    ("placeholder-missing", in_config(image_token_index=VOCABULARY + 5), f"{VOCABULARY + 5}"),
    ("placeholder-is-another-token", replaced_placeholder, "image"),
    (
        "placeholder-is-another-token",
        in_config(image_token_index=VOCABULARY + 1, video_token_index=VOCABULARY),
        "'<video>'",
    ),
    ("template-fails", write("chat_template.jinja", b"{% for message in %}"), "one video"),
    ("template-fails", write("chat_template.jinja", b"{{ messages[0]['role'] }}"), "one image"),
    ("rows-without-token", in_config(), "rows"),
    ("not-finite", tensors(lambda state: state[f"{BLOCK}.mlp.up_proj.weight"][3, 5].fill_(float("nan"))), "[3, 5]"),
    ("not-finite", tensors(lambda state: state[NORM][7:].fill_(float("inf"))), "57 of 64 values"),
    ("all-zero", tensors(lambda state: state[f"{BLOCK}.mlp.up_proj.weight"].zero_()), "layers.1.mlp.up_proj"),
    ("all-zero", tensors(lambda state: state[NORM].zero_()), NORM),
    ("starts-at-zero", temporal_zero_output, "temporal_attn.out_proj"),
    ("constant", tensors(lambda state: state[f"{BLOCK}.mlp.up_proj.weight"].fill_(0.02)), "0.02"),
    ("zero-block", large, "8,388,608 of 12,582,912 bytes"),
    ("tied-differ", lambda directory: tied(directory, equal=False), HEAD),
    ("copies-expected", lambda directory: tied(directory, equal=True), HEAD),
    ("towers-identical", tensors(copy_tower), "all 71 tensors"),
    ("towers-assembled", assembled, "all 71 tensors"),
    (
        "towers-alike",
        tensors(lambda state: copy_tower(state, "class_embedding", "post_layernorm.weight", "post_layernorm.bias")),
        "26 of 26 matrices",
    ),
    (
        "tensors-identical",
        tensors(
            lambda state: copy(state, f"{BLOCK}.self_attn.q_proj.weight", f"{BLOCK[:-1]}2.self_attn.q_proj.weight")
        ),
        "layers.2.self_attn.q_proj",
    ),
]
# Some mistakes are several at once: a placeholder past the tokenizer, say, is past the vocabulary too.
ALSO: list[tuple[str, Callable[[Path], object], set[str]]] = [
    (
        "placeholder-outside-vocabulary",
        in_config(video_token_index=600),
        {"placeholder-missing"},
    ),
    ("special-id-outside-vocabulary", in_config(pad_token_id=448), {"special-ids-disagree"}),
    (
        "vocabulary-too-small",
        lambda directory: write_tiny_checkpoint(directory, tiny_hf_config(text_vocab_size=VOCABULARY + 1)),
        {"placeholder-outside-vocabulary", "special-id-outside-vocabulary"},
    ),
    (
        "parameter-stored-twice",
        tensors(lambda state: state.update({"lm_head.weight": state[HEAD].clone()})),
        {"layouts-mixed"},
    ),
]


def serious(diagnosis: Diagnosis) -> set[str]:
    return {finding.code for finding in diagnosis.findings if finding.severity != "note"}


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    directory = tmp_path / "checkpoint"
    write_tiny_checkpoint(directory)
    return directory


@pytest.mark.parametrize(("code", "plant", "place"), PLANTS, ids=[f"{code}-{i}" for i, (code, *_) in enumerate(PLANTS)])
def test_every_planted_fault_is_found(sound: Path, code: str, plant: Callable[[Path], object], place: str) -> None:
    plant(sound)
    diagnosis = diagnose(sound)
    found = [finding for finding in diagnosis.findings if finding.code == code]
    assert found, diagnosis.findings
    assert any(place in finding.subject or place in finding.what for finding in found), found
    severity = CATALOGUE[code].severity
    assert all(finding.severity == severity for finding in found)
    assert serious(diagnosis) == ({code} if severity != "note" else set()), diagnosis.findings
    assert diagnosis.sound == (severity == "note")


@pytest.mark.parametrize(("code", "plant", "others"), ALSO, ids=[code for code, *_ in ALSO])
def test_faults_that_are_several_at_once(
    sound: Path, code: str, plant: Callable[[Path], object], others: set[str]
) -> None:
    plant(sound)
    assert serious(diagnose(sound)) == {code} | others


def test_every_kind_of_finding_is_planted_here() -> None:
    planted = {code for code, *_ in PLANTS} | {code for code, *_ in ALSO}
    # Planted below: a file that shrinks while it is read, a reader that knows more. In test_check_families: towers.
    elsewhere = {"values-unreadable", "reader-refuses", "tower-elsewhere", "head-missing"}
    assert planted | elsewhere == set(CATALOGUE)


def test_the_catalogue_says_what_it_means_and_what_to_do() -> None:
    for kind in CATALOGUE.values():
        assert kind.severity in SEVERITIES
        assert all(text.endswith(".") and len(text) > 15 for text in (kind.meaning, kind.remedy))


def only(diagnosis: Diagnosis, code: str) -> Finding:
    (finding,) = (finding for finding in diagnosis.findings if finding.code == code)
    return finding


def test_a_sound_checkpoint(sound: Path) -> None:
    diagnosis = diagnose(sound)
    assert diagnosis.sound and serious(diagnosis) == set()
    assert diagnosis.sentence.startswith("Video-LLaVA without temporal attention, hub layout (A), float32, 272 k")
    state = load_file(sound / WEIGHTS)
    facts = diagnosis.facts
    assert (facts["tensors"], facts["layout"], facts["family"]) == (176, "A", "video-llava")
    assert facts["bytes"] == 4 * sum(tensor.numel() for tensor in state.values()) == 4 * facts["parameters"]
    assert facts["examined"] == "values" and facts["seconds"] > 0


@pytest.mark.parametrize("layout", ["A", "B", "C", "D"])
def test_every_layout_is_sound_whole_and_in_shards(tmp_path: Path, layout: Any) -> None:
    write_tiny_checkpoint(tmp_path, layout=layout)
    assert (diagnose(tmp_path).facts["layout"], diagnose(tmp_path).sound) == (layout, True)
    shards(tmp_path)
    diagnosis = diagnose(tmp_path)
    assert diagnosis.sound and len(diagnosis.facts["files"]) == 2


def test_fast_reads_no_values(sound: Path) -> None:
    weights(sound, lambda state: state[NORM].fill_(float("nan")))
    told: list[tuple[int, int]] = []
    fast = diagnose(sound, values=False, on_progress=lambda done, total: told.append((done, total)))
    assert fast.sound and fast.facts["examined"] == "headers" and not told
    assert serious(diagnose(sound)) == {"not-finite"}


def test_progress_counts_bytes_up_to_all_of_them(sound: Path) -> None:
    told: list[tuple[int, int]] = []
    size = diagnose(sound, on_progress=lambda done, total: told.append((done, total))).facts["bytes"]
    assert told[-1] == (size, size) and len(told) == 176
    assert all(earlier[0] < later[0] for earlier, later in pairwise(told))


def test_a_tensor_of_many_blocks_is_read_to_its_end(sound: Path) -> None:
    """Faults in the last value of a tensor that takes several reads, the last of them short."""
    width = (2 * BLOCK_BYTES + 64 * 4) // (4 * 64)
    write_tiny_checkpoint(sound, tiny_hf_config(text_intermediate_size=width))
    name = f"{BLOCK}.mlp.up_proj.weight"
    assert diagnose(sound).sound
    weights(sound, lambda state: state[name][-1, -1].fill_(float("inf")))
    assert f"[{width - 1}, 63]" in only(diagnose(sound), "not-finite").what


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_bad_values_are_found_in_every_dtype(sound: Path, dtype: torch.dtype, value: float) -> None:
    name = str(dtype).removeprefix("torch.")
    settings(sound, "config.json", torch_dtype=name)

    def edit(state: dict[str, torch.Tensor]) -> None:
        state.update({key: tensor.to(dtype) for key, tensor in state.items()})
        state[NORM][17] = value

    weights(sound, edit)
    diagnosis = diagnose(sound)
    assert serious(diagnosis) == {"not-finite"} and f", {name}," in diagnosis.sentence
    assert "[17]" in only(diagnosis, "not-finite").what


def test_zero_where_zero_is_normal(sound: Path) -> None:
    def edit(state: dict[str, torch.Tensor]) -> None:
        for name, tensor in state.items():
            if name.endswith((".bias", "temporal_embedding")):
                tensor.zero_()

    temporal(sound, temporal_attention=True, temporal_frames=3)
    weights(sound, edit)
    assert diagnose(sound).sound


def test_temporal_attention_that_is_a_copy_of_the_spatial_one_is_normal(sound: Path) -> None:
    temporal(sound, temporal_attention=True, temporal_frames=3)
    layer = "video_tower.vision_model.encoder.layers.2"
    weights(
        sound, lambda state: copy(state, f"{layer}.self_attn.q_proj.weight", f"{layer}.temporal_attn.q_proj.weight")
    )
    assert diagnose(sound).sound
    weights(
        sound, lambda state: copy(state, f"{layer}.self_attn.q_proj.weight", f"{layer}.temporal_attn.k_proj.weight")
    )
    assert serious(diagnose(sound)) == {"tensors-identical"}


@pytest.mark.parametrize(("share", "severity"), [(0.05, "warning"), (0.3, "warning"), (0.49, "warning"), (0.6, "note")])
def test_towers_that_were_copied_in_part(sound: Path, share: float, severity: str) -> None:
    """The published checkpoint shares most of its matrices; a few of many are a mistake."""
    matrices = [name for name, tensor in load_file(sound / WEIGHTS).items() if TOWER in name and tensor.dim() > 1]
    copies = matrices[: max(1, int(share * len(matrices)))]
    weights(sound, lambda state: [copy(state, name, name.replace("image_tower", "video_tower")) for name in copies])
    finding = only(diagnose(sound), "towers-alike")
    assert finding.severity == severity
    assert finding.what.startswith(f"{len(copies)} of {len(matrices)} matrices are the image tower's")


def test_towers_whose_norms_and_biases_agree_are_nothing_to_report(sound: Path) -> None:
    weights(
        sound,
        lambda state: [
            copy(state, name, name.replace("image_tower", "video_tower"))
            for name in list(state)
            if TOWER in name and state[name].dim() == 1
        ],
    )
    assert not any(finding.code.startswith("towers") for finding in diagnose(sound).findings)


def without_video_token(directory: Path) -> None:
    """A tokenizer that has another special token in place of `<video>`."""
    path = directory / "tokenizer.json"
    path.write_text(path.read_text().replace('"<video>"', '"<clip>"'))
    assert Tokenizer.from_directory(directory).token_to_id("<video>") is None


@pytest.mark.parametrize("role", ["bos_id", "eos_id", "pad_id", "unk_id"])
def test_a_placeholder_on_a_special_token_with_a_role(sound: Path, role: str) -> None:
    """Also where the tokenizer has no <video> of its own to compare with."""
    token_id = getattr(Tokenizer.from_directory(sound), role)
    without_video_token(sound)
    settings(sound, "config.json", video_token_index=token_id)
    assert serious(diagnose(sound)) == {"placeholder-is-another-token"}
    assert f"{token_id}, which is" in only(diagnose(sound), "placeholder-is-another-token").what


def test_a_placeholder_on_a_special_token_without_a_role(sound: Path) -> None:
    without_video_token(sound)
    assert not serious(diagnose(sound)) & {"placeholder-is-another-token", "placeholder-missing"}


def test_what_a_truncated_file_still_holds_is_examined(sound: Path) -> None:
    """Names that the header has are not missing, and values that are there are read."""
    weights(sound, lambda state: state[HEAD].fill_(float("nan")))
    cut(sound, 10)
    diagnosis = diagnose(sound)
    assert serious(diagnosis) == {"file-truncated", "not-finite"}
    assert "video_tower" in only(diagnosis, "file-truncated").what


def test_a_missing_shard_explains_its_missing_tensors(sound: Path) -> None:
    missing_shard(sound)
    diagnosis = diagnose(sound)
    assert "88 tensors" in only(diagnosis, "shard-missing").what
    assert diagnosis.facts["tensors"] == 88


def test_several_faults_are_all_found(sound: Path) -> None:
    """The reader would stop at the first."""
    weights(sound, lambda state: (drop(state, HEAD), state[NORM].fill_(float("nan"))))
    settings(sound, "config.json", vocab_size=5, torch_dtype="float16")
    (sound / "tokenizer.json").unlink()
    assert serious(diagnose(sound)) == {
        "tensors-missing",
        "not-finite",
        "vocabulary-stated-twice",
        "dtype-differs",
        "tokenizer-missing",
    }
    severities = [SEVERITIES.index(finding.severity) for finding in diagnose(sound).findings]
    assert severities == sorted(severities)


def test_many_of_a_kind_are_counted(sound: Path) -> None:
    weights(sound, lambda state: [tensor.fill_(float("nan")) for tensor in state.values()])
    found = [finding for finding in diagnose(sound).findings if finding.code == "not-finite"]
    assert len(found) == MAX_OF_A_KIND + 1
    assert found[-1].what == f"{176 - MAX_OF_A_KIND} more like these"


def test_long_names_are_cut(sound: Path) -> None:
    weights(sound, lambda state: state.update({"x" * 100_000: torch.ones(1)}))
    finding = only(diagnose(sound), "tensors-foreign")
    assert len(finding.subject) <= MAX_SUBJECT and len(finding.what) < 1001


def test_a_file_that_shrinks_while_it_is_read_is_a_finding(sound: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from filmstrip.diagnostics.doctor import examine as module

    original = module.read_contents

    def shrink(*arguments: Any) -> Any:
        cut(sound, 100_000)
        return original(*arguments)

    monkeypatch.setattr(module, "read_contents", shrink)
    finding = next(finding for finding in module.diagnose(sound).findings if finding.code == "values-unreadable")
    assert "ends inside tensor" in finding.what


def test_what_only_the_reader_knows_is_a_finding(sound: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from filmstrip.diagnostics.doctor import examine as module

    def refuse(directory: Path, towers: object) -> None:
        raise CheckpointError(f"{directory}: something new")

    monkeypatch.setattr(module, "read_any", refuse)
    assert only(module.diagnose(sound), "reader-refuses").what == "something new"


def test_nothing_to_examine(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"neither a config\.json nor weights"):
        diagnose(tmp_path)
    with pytest.raises(CheckpointError, match="is not a directory"):
        diagnose(tmp_path / "nowhere")


def test_the_sentence_says_what_can_be_told(sound: Path) -> None:
    (sound / "config.json").unlink()
    assert diagnose(sound).sentence == (
        "A checkpoint in the hub layout (A) of Video-LLaVA, float32, 272 k parameters; it has no config.json"
    )
    (sound / "config.json").write_text("{}")
    assert diagnose(sound).sentence.endswith("its config.json cannot be used")
    renamed(sound)
    assert diagnose(sound).sentence == "Not a checkpoint of a model known here"


def test_the_sentence_tells_unreadable_weights_from_none(sound: Path) -> None:
    (sound / WEIGHTS).write_bytes(b"")
    expected = "Video-LLaVA without temporal attention, {}, 272 k parameters"
    assert diagnose(sound).sentence == expected.format("weights that cannot be read")
    (sound / WEIGHTS).unlink()
    assert diagnose(sound).sentence == expected.format("no weights")


def test_symbolic_links_are_followed_inside_the_hub_cache_alone(sound: Path, tmp_path: Path) -> None:
    repository = tmp_path / "models--owner--name"
    snapshot = repository / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for number, path in enumerate(sound.iterdir()):
        (repository / "blobs" / str(number)).write_bytes(path.read_bytes())
        (snapshot / path.name).symlink_to(Path("../../blobs") / str(number))
    assert diagnose(snapshot).sound
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to(sound / "config.json")
    diagnosis = diagnose(snapshot)
    assert not diagnosis.sound
    assert any("link to something outside" in finding.what for finding in diagnosis.findings)


def test_weights_behind_a_link_that_leads_out_are_not_read(sound: Path, tmp_path: Path) -> None:
    (sound / "model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    (sound / "model.safetensors").symlink_to(tmp_path / "elsewhere.safetensors")
    with pytest.raises(CheckpointError, match="link to something outside its directory"):
        read_checkpoint(sound)
    assert not diagnose(sound).sound


def test_files_that_are_not_files_are_never_opened(sound: Path) -> None:
    """Opening a pipe would wait for ever."""
    os.mkfifo(sound / "more.safetensors")
    (sound / "directory.json").mkdir()
    assert diagnose(sound).sound
    (sound / WEIGHTS).unlink()
    os.mkfifo(sound / WEIGHTS)
    assert serious(diagnose(sound)) == {"weights-missing"}


def test_weights_written_by_name_only(tmp_path: Path) -> None:
    """Weights without any other file are examined as far as they go."""
    save_file(rename_state(tiny_state(tiny_hf_config()), "B"), tmp_path / WEIGHTS)
    diagnosis = diagnose(tmp_path)
    assert serious(diagnosis) == {"config-missing", "tokenizer-missing"}
    assert "transformers 4.52 layout (B)" in diagnosis.sentence


def test_a_pointer_in_place_of_a_file_that_is_not_read_is_a_warning(sound: Path) -> None:
    (sound / "tokenizer.model").write_bytes(POINTER)
    (sound / "pytorch_model.bin").write_bytes(POINTER)
    found = [finding for finding in diagnose(sound).findings if finding.code == "lfs-pointer"]
    assert [(finding.subject, finding.severity) for finding in found] == [
        ("pytorch_model.bin", "warning"),
        ("tokenizer.model", "warning"),
    ]


def test_findings_past_the_limit_keep_the_severity_they_were_reported_with() -> None:
    """`lfs-pointer` is an error by itself; here it was said to be a note, so the checkpoint stays sound."""
    findings = Findings()
    for number in range(MAX_OF_A_KIND + 3):
        findings.within("tower/").add("lfs-pointer", f"{number}.bin", "unread", severity="note")
    findings.add("lfs-pointer", "model.safetensors", "read")
    listed = findings.sorted()
    assert [finding.subject for finding in listed if finding.severity == "error"] == ["model.safetensors"]
    assert (listed[-1].severity, listed[-1].what) == ("note", "3 more like these")
    assert len(listed) == MAX_OF_A_KIND + 2
