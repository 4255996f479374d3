"""A corpus of damaged and hostile checkpoints, made by code: each is refused with one clear line, and explained.

The loader must raise a `FilmstripError` of one line; `filmstrip check` must find an error or say that nothing can be
examined. Nothing may crash, and nothing may load.
"""

import json
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import filmstrip
from filmstrip.checkpoint.header import MAX_HEADER_BYTES, read_header
from filmstrip.errors import CheckpointError, ConfigError
from filmstrip.testing.tiny import tiny_hf_config, write_json, write_tiny_checkpoint
from tests.e2e.helpers import run

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLE = "pytorch_model.bin"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
NORM = "language_model.model.norm.weight"  # shape (8,)
QUERY = "language_model.model.layers.0.self_attn.q_proj.weight"  # shape (8, 8)

Damage = Callable[[Path], object]


def write_small_checkpoint(directory: Path) -> None:
    """One layer everywhere, 8 wide: 62 tensors in 80 kB."""
    config = tiny_hf_config(
        text_hidden_size=8,
        text_intermediate_size=8,
        text_num_hidden_layers=1,
        text_num_attention_heads=2,
        text_num_key_value_heads=2,
        vision_hidden_size=8,
        vision_intermediate_size=8,
        vision_num_hidden_layers=1,
        vision_num_attention_heads=2,
        vision_feature_layer=-1,
    )
    write_tiny_checkpoint(directory, config)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint that is damaged, in one file; it loads, and check finds nothing."""
    directory = tmp_path_factory.mktemp("corpus") / "whole"
    write_small_checkpoint(directory)
    filmstrip.load(directory, quiet=True)
    assert run("check", directory, "--json").code == 0
    return directory


@pytest.fixture(scope="module")
def sharded(whole: Path) -> Path:
    """The same in two shards."""
    directory = whole.parent / "sharded"
    shutil.copytree(whole, directory)
    state = load_file(directory / WEIGHTS)
    (directory / WEIGHTS).unlink()
    names = sorted(state)
    weight_map = {}
    for shard, part in zip(SHARDS, (names[::2], names[1::2]), strict=True):
        save_file({name: state[name].clone() for name in part}, directory / shard, {"format": "pt"})
        weight_map |= dict.fromkeys(part, shard)
    write_json(directory / INDEX, {"metadata": {}, "weight_map": weight_map})
    filmstrip.load(directory, quiet=True)
    assert run("check", directory, "--json").code == 0
    return directory


def verdict(directory: Path) -> str:
    """What is wrong with how a damaged checkpoint was received; empty when nothing is."""
    try:
        return _verdict_of_loader(directory) or _verdict_of_check(directory)
    except BaseException as error:  # a panic of a library is no Exception
        return f"crashed: {error!r}"[:500]


def _verdict_of_loader(directory: Path) -> str:
    try:
        filmstrip.load(directory, quiet=True)
    except (CheckpointError, ConfigError) as error:
        message = str(error)
        clear = message and "\n" not in message and len(message) < 2000
        return "" if clear else f"not one clear line: {message[:300]!r}"
    return "it loaded"


def _verdict_of_check(directory: Path) -> str:
    result = run("check", directory, "--json")
    if result.code == 2:
        return "" if result.err.startswith("filmstrip: ") and result.err.count("\n") == 1 else f"check: {result.err}"
    found = [finding for finding in result.json["findings"] if finding["severity"] == "error"]
    if result.code != 1 or not found:
        return f"check found no error (exit {result.code})"
    texts = [text for finding in found for text in finding.values()]
    return "" if all(text and "\n" not in text for text in texts) else "a finding without a text"


def damage_all(source: Path, place: Path, corpus: Iterator[tuple[str, Damage]]) -> int:
    """Apply every damage to a fresh copy, and fail with the list of those that were not received as they should."""
    wrong, count = [], 0
    for count, (name, damage) in enumerate(corpus, start=1):
        directory = place / f"{count:04d}"
        shutil.copytree(source, directory)
        damage(directory)
        told = verdict(directory)
        if told:
            wrong.append(f"{name}: {told}")
        shutil.rmtree(directory)
    assert not wrong, "\n".join([f"{len(wrong)} of {count}:", *wrong[:20]])
    return count


def split(raw: bytes) -> tuple[dict[str, Any], bytes]:
    length = struct.unpack("<Q", raw[:8])[0]
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def join(header: dict[str, Any] | bytes, data: bytes) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data


def truncate(length: int) -> Damage:
    return lambda directory: os.truncate(directory / WEIGHTS, length)


def claim(length: int) -> Damage:
    def damage(directory: Path) -> None:
        path = directory / WEIGHTS
        path.write_bytes(struct.pack("<Q", length) + path.read_bytes()[8:])

    return damage


def entry(key: str, value: Any, name: str = NORM) -> Damage:
    """One field of one tensor's header entry."""

    def damage(directory: Path) -> None:
        path = directory / WEIGHTS
        header, data = split(path.read_bytes())
        header[name][key] = value
        path.write_bytes(join(header, data))

    return damage


def edited(edit: Callable[[dict[str, Any]], object]) -> Damage:
    """The header as a whole."""

    def damage(directory: Path) -> None:
        path = directory / WEIGHTS
        header, data = split(path.read_bytes())
        edit(header)
        path.write_bytes(join(header, data))

    return damage


def raw_header(change: Callable[[bytes], bytes]) -> Damage:
    """The header's bytes, with a length that fits."""

    def damage(directory: Path) -> None:
        path = directory / WEIGHTS
        raw = path.read_bytes()
        length = struct.unpack("<Q", raw[:8])[0]
        path.write_bytes(join(change(raw[8 : 8 + length]), raw[8 + length :]))

    return damage


def replaced(file: str, content: bytes) -> Damage:
    return lambda directory: (directory / file).write_bytes(content)


def broken_json(file: str) -> Iterator[tuple[str, Damage]]:
    """Ways in which any JSON file can be broken."""
    contents = {
        "empty": b"",
        "one brace": b"{",
        "array": b"[]",
        "text": b'"config"',
        "number": b"7",
        "null": b"null",
        "HTML": b"<!DOCTYPE html><html></html>",
        "LFS pointer": POINTER,
        "not UTF-8": b'{"model_type": "\xff\xfe"}',
        "UTF-16": '{"a": 1}'.encode("utf-16"),
        "zeros": bytes(512),
        "deep arrays": b'{"a":' + b"[" * 200_000,
        "deep objects": b'{"a":' * 100_000,
        "duplicate": b'{"model": {"a": 1, "a": 2}, "weight_map": {"a": "b", "a": "c"}, "a": 1, "a": 2}',
        "NaN": b'{"a": NaN}',
        "infinite": b'{"a": -Infinity}',
        "long number": b'{"a": 1' + b"0" * 10_000 + b"}",
        "comma": b'{"a": 1,}',
        "single quotes": b"{'a': 1}",
        "two objects": b"{}{}",
        "cut": b'{"model_type": "video_ll',
    }
    for name, content in contents.items():
        yield f"{file} {name}", replaced(file, content)


# The corpus


def truncations(whole: Path) -> Iterator[tuple[str, Damage]]:
    path = whole / WEIGHTS
    size = path.stat().st_size
    data_start = 8 + struct.unpack("<Q", path.read_bytes()[:8])[0]
    boundaries = {0, 8, data_start}
    middles = {4, (8 + data_start) // 2}
    for info in read_header(path).values():
        boundaries |= {info.begin, info.end}
        middles.add((info.begin + info.end) // 2)
    for length in sorted(middles | {place + step for place in boundaries for step in (-1, 0, 1)}):
        if 0 <= length < size:
            yield f"truncated to {length}", truncate(length)
    for more in (1, 7, 4096):
        yield f"{more} more bytes", truncate(size + more)


def lengths(whole: Path) -> Iterator[tuple[str, Damage]]:
    size = (whole / WEIGHTS).stat().st_size
    true = struct.unpack("<Q", (whole / WEIGHTS).read_bytes()[:8])[0]
    lies = {0, 1, 2, true - 8, true - 1, true + 1, true + 8, size - 8, size - 7, size, size + 1}
    lies |= {MAX_HEADER_BYTES, MAX_HEADER_BYTES + 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1}
    for length in sorted(lies):
        yield f"a header of {length} bytes claimed", claim(length)


def entries(whole: Path) -> Iterator[tuple[str, Damage]]:
    header, _ = split((whole / WEIGHTS).read_bytes())
    begin, end = header[NORM]["data_offsets"]
    other = header[QUERY]["data_offsets"]
    for dtype in ("f32", "F33", "", "float32", "F8_E8M0", "C64", "U16", "F16", "F64", "I32", None, 7, ["F32"], {}):
        yield f"dtype {dtype!r}", entry("dtype", dtype)
    sizes: list[Any] = [[-8], [8.0], ["8"], "8", None, {}, 8, [2**63], [2**64], [2**70, 0], [True], [[8]], [None]]
    sizes += [[0], [], [9], [7], [4, 2], [2, 2, 2], [1] * 9, [8] + [1] * 100, [8, 0], [2**32, 2**32], [-2, -4]]
    for shape in sizes:
        yield f"shape {shape!r}"[:60], entry("shape", shape)
    places: list[Any] = [[end, begin], [begin], [begin, end, end], [], None, "0", [str(begin), str(end)], {}]
    places += [
        [float(begin), float(end)],
        [-32, 0],
        [begin, -1],
        [False, True],
        [2**63, 2**63 + 32],
        [2**62, 2**62 + 32],
    ]
    places += [[begin + 1, end + 1], [begin - 1, end - 1], [begin, end + 1], [begin - 1, end], [0, end - begin], other]
    for offsets in places:
        yield f"offsets {offsets!r}", entry("data_offsets", offsets)
    yield "an entry that is no object", edited(lambda header: header.update({NORM: [1]}))
    yield "an entry that is null", edited(lambda header: header.update({NORM: None}))
    for key in ("dtype", "shape", "data_offsets"):
        yield f"no {key}", edited(lambda header, key=key: header[NORM].pop(key))
    yield "an unknown field", entry("stride", [1])
    yield "a tensor less", edited(lambda header: header.pop(NORM))
    yield "a tensor renamed", edited(lambda header: header.update({"renamed": header.pop(NORM)}))
    yield "a tensor without a name", edited(lambda header: header.update({"": header.pop(NORM)}))
    yield "control characters", edited(lambda header: header.update({"\x1b[2J\n\x00": header.pop(NORM)}))
    yield "a surrogate", edited(lambda header: header.update({"\ud800": header.pop(NORM)}))
    yield (
        "one more, empty",
        edited(lambda header: header.update({"x": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}})),
    )
    for metadata in (5, [], "pt", {"format": 5}, {"format": None}, {"format": {}}):
        yield f"metadata {metadata!r}", edited(lambda header, metadata=metadata: header.update(__metadata__=metadata))


def syntax(whole: Path) -> Iterator[tuple[str, Damage]]:
    changes: dict[str, Callable[[bytes], bytes]] = {
        "empty header": lambda raw: b"",
        "empty object": lambda raw: b"{}",
        "an array": lambda raw: b"[" + raw + b"]",
        "not UTF-8": lambda raw: raw.replace(b"norm", b"n\xffrm", 1),
        "a byte-order mark": lambda raw: b"\xef\xbb\xbf" + raw,
        "a tail": lambda raw: raw + b"x",
        "a null byte": lambda raw: raw + b"\x00",
        "a comma": lambda raw: raw.rstrip()[:-1] + b",}",
        "single quotes": lambda raw: raw.replace(b'"', b"'"),
        "duplicate tensor": lambda raw: raw.rstrip()[:-1] + b',"' + NORM.encode() + b'":{}}',
        "duplicate field": lambda raw: raw.replace(b'"dtype":', b'"dtype":"F32","dtype":', 1),
        "nested deeply": lambda raw: raw.rstrip()[:-1] + b',"x":' + b"[" * 300_000 + b"]" * 300_000 + b"}",
        "open brackets": lambda raw: b'{"x":' + b"[" * 300_000,
        "NaN": lambda raw: raw.replace(b'"shape":[8]', b'"shape":[NaN]', 1),
        "infinity": lambda raw: raw.replace(b'"shape":[8]', b'"shape":[1e999]', 1),
        "a long number": lambda raw: raw.replace(b'"shape":[8]', b'"shape":[8' + b"0" * 6000 + b"]", 1),
        "a space in front": lambda raw: b" " + raw,
    }
    for name, change in changes.items():
        yield f"header with {name}", raw_header(change)


def whole_files(whole: Path) -> Iterator[tuple[str, Damage]]:
    contents = {
        "an LFS pointer": POINTER,
        "HTML": b"<!DOCTYPE html><html>404</html>",
        "zeros": bytes(10_000),
        "ones": b"\xff" * 10_000,
        "a pickle": b"\x80\x04]\x94.",
        "a zip": b"PK\x03\x04" + bytes(100),
        "JSON": b"{}",
    }
    for name, content in contents.items():
        yield f"weights are {name}", replaced(WEIGHTS, content)
    yield "weights are a directory", lambda directory: ((directory / WEIGHTS).unlink(), (directory / WEIGHTS).mkdir())
    yield "weights are a pipe", lambda directory: ((directory / WEIGHTS).unlink(), os.mkfifo(directory / WEIGHTS))
    yield "weights are a loop", lambda directory: loop(directory / WEIGHTS)
    yield "weights are a dangling link", lambda directory: link(directory / WEIGHTS, "nowhere")
    yield "no weights", lambda directory: (directory / WEIGHTS).unlink()
    for file in ("config.json", "tokenizer.json"):
        yield f"no {file}", lambda directory, file=file: (directory / file).unlink()
        yield (
            f"{file} is a pipe",
            lambda directory, file=file: (
                (directory / file).unlink(),
                os.mkfifo(directory / file),
            ),
        )


def loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


def link(path: Path, target: str) -> None:
    path.unlink()
    path.symlink_to(target)


def indexed(edit: Callable[[dict[str, Any]], object]) -> Damage:
    def damage(directory: Path) -> None:
        content = json.loads((directory / INDEX).read_text())
        edit(content)
        (directory / INDEX).write_text(json.dumps(content))

    return damage


def indexes(sharded: Path) -> Iterator[tuple[str, Damage]]:
    first = SHARDS[0]
    targets: list[Any] = [
        f"../{sharded.name}/{first}",
        f"./{first}",
        f"{sharded}/{first}",
        f"/etc/{first}",
        f"sub/{first}",
    ]
    targets += [f"..\\{first}", f"C:{first}", f"C:\\{first}", f"\\\\server\\{first}", f".{first}", "..", ".", "", "/"]
    targets += ["config.json", "model.bin", "sub.safetensors", "pipe.safetensors", "loop.safetensors", f"{first}\x00"]
    targets += [f"{first}\n", f" {first}", f"{first.upper()}", "x" * 300 + ".safetensors", "file:///etc/x.safetensors"]
    targets += [7, 1.5, None, True, [first], {"file": first}, [], {}]
    for target in targets:

        def damage(directory: Path, target: Any = target) -> None:
            (directory / "sub").mkdir()
            shutil.copy(directory / first, directory / "sub" / first)
            (directory / "sub.safetensors").mkdir()
            os.mkfifo(directory / "pipe.safetensors")
            (directory / "loop.safetensors").symlink_to("loop.safetensors")
            indexed(lambda index: index["weight_map"].update({NORM: target}))(directory)

        yield f"index points to {target!r}"[:80], damage
    for content in ([], "x", 7, None, {}, {"a": None}, [[NORM, first]]):
        yield f"weight_map {content!r}", indexed(lambda index, content=content: index.update(weight_map=content))
    yield "no weight_map", indexed(lambda index: index.pop("weight_map"))
    yield "a tensor less", indexed(lambda index: index["weight_map"].pop(NORM))
    yield "a tensor more", indexed(lambda index: index["weight_map"].update(more=first))
    yield (
        "shards swapped",
        indexed(
            lambda index: index["weight_map"].update(
                {name: SHARDS[1 - SHARDS.index(shard)] for name, shard in index["weight_map"].items()}
            )
        ),
    )
    yield (
        "many shards",
        indexed(lambda index: index["weight_map"].update({f"t{i}": f"s{i}.safetensors" for i in range(2000)})),
    )
    for shard in SHARDS:
        yield f"{shard} missing", lambda directory, shard=shard: (directory / shard).unlink()
        yield f"{shard} empty", replaced(shard, b"")
        yield f"{shard} a pointer", replaced(shard, POINTER)
        yield (
            f"{shard} half there",
            lambda directory, shard=shard: os.truncate(directory / shard, (directory / shard).stat().st_size // 2),
        )
    yield "one shard twice", lambda directory: shutil.copy(directory / SHARDS[0], directory / SHARDS[1])
    yield from broken_json(INDEX)


SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
WRONG_SIZES: tuple[Any, ...] = ("8", -8, 0, 8.5, [8], {}, True, 2**70, 5)


def configured(edit: Callable[[dict[str, Any]], object]) -> Damage:
    def damage(directory: Path) -> None:
        content = json.loads((directory / "config.json").read_text())
        edit(content)
        (directory / "config.json").write_text(json.dumps(content))

    return damage


def configs(whole: Path) -> Iterator[tuple[str, Damage]]:
    yield from broken_json("config.json")
    for section in ("text_config", "vision_config"):
        for key in SIZES:
            for value in WRONG_SIZES:
                yield (
                    f"{section} {key} {value!r}",
                    configured(lambda config, s=section, k=key, v=value: config[s].update({k: v})),
                )
        for value in ("x", 7, [], True):
            yield f"{section} {value!r}", configured(lambda config, s=section, v=value: config.update({s: v}))
    wrong: dict[str, tuple[Any, ...]] = {
        "model_type": (None, 7, "llama-x", [], {}),
        "image_token_index": ("<image>", -1, 1.5, [], {}),
        "vision_feature_layer": ("last", 9, -9, [], {}, [1.5], 0.5),
        "vision_feature_select_strategy": ("patch", 7, [], {}),
        "projector_hidden_act": ("magic", 7, []),
        "architectures": ("x", 7, ["FlamingoForConditionalGeneration"], {}),
        "quantization_config": ({"bits": 4},),
    }
    for key, values in wrong.items():
        for value in values:
            yield f"{key} {value!r}", configured(lambda config, k=key, v=value: config.update({k: v}))


def companions(whole: Path) -> Iterator[tuple[str, Damage]]:
    yield from broken_json("tokenizer.json")
    for token in ("absent", 7, ["<s>"], {"content": "<s>"}):

        def damage(directory: Path, token: Any = token) -> None:
            content = json.loads((directory / "tokenizer.json").read_text())
            content["post_processor"]["single"][0]["SpecialToken"]["id"] = token
            (directory / "tokenizer.json").write_text(json.dumps(content))

        yield f"the post-processor uses {token!r}", damage
    for file in ("preprocessor_config.json", "generation_config.json", "tokenizer_config.json", "chat_template.json"):
        for name, damage in broken_json(file):
            if not name.endswith("duplicate") or not file.startswith("token"):
                yield name, damage


def pickles(pickled: Path) -> Iterator[tuple[str, Damage]]:
    """The weights as `torch.save` writes them: cut, damaged, and a pickle that would touch a file if it were run."""
    file, size = PICKLE, (pickled / PICKLE).stat().st_size
    for length in sorted({0, 1, 4, 30, size // 4, size // 2, size - 100, size - 22, size - 1}):
        yield f"{file} truncated to {length}", lambda directory, length=length: os.truncate(directory / file, length)
    for name, content in {"pointer": POINTER, "HTML": b"<html>", "zip": b"PK\x03\x04" + bytes(100)}.items():
        yield f"{file} {name}", replaced(file, content)
    for name, content in {
        "legacy": {"a": torch.ones(1)},
        "list": [torch.ones(1)],
        "number": 7,
        "text": {"a": "b"},
    }.items():
        yield (
            f"{file} {name}",
            lambda directory, name=name, content=content: torch.save(
                content, directory / file, _use_new_zipfile_serialization=name != "legacy"
            ),
        )
    yield "a program", lambda directory: torch.save({"a": Touch(str(directory.parent / "touched"))}, directory / file)


class Touch:
    """Unpickling this would create a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


def test_damage_to_a_pickled_checkpoint(whole: Path, tmp_path: Path) -> None:
    pickled = tmp_path / "pickled"
    shutil.copytree(whole, pickled)
    torch.save(load_file(pickled / WEIGHTS), pickled / PICKLE)
    (pickled / WEIGHTS).unlink()
    filmstrip.load(pickled, quiet=True)
    assert run("check", pickled, "--json").code == 0
    assert damage_all(pickled, tmp_path / "damaged", pickles(pickled)) > 10
    assert not (tmp_path / "damaged" / "touched").exists()


@pytest.mark.parametrize(
    "corpus",
    [
        lengths,
        syntax,
        whole_files,
        configs,
        *(pytest.param(corpus, marks=pytest.mark.slow) for corpus in (truncations, companions, entries)),
    ],
    ids=lambda corpus: corpus.__name__,
)
def test_damage_to_a_checkpoint_in_one_file(whole: Path, tmp_path: Path, corpus: Callable[[Path], Any]) -> None:
    assert damage_all(whole, tmp_path, corpus(whole)) > 10


def test_damage_to_a_checkpoint_in_shards(sharded: Path, tmp_path: Path) -> None:
    assert damage_all(sharded, tmp_path, indexes(sharded)) > 50


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_bytes_of_the_header_changed(
    whole: Path, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Loading fails with one line, or gives exactly the tensors that were written."""
    directory = shutil.copytree(whole, tmp_path_factory.mktemp("bytes") / "copy")
    expected = {
        name: tensor.clone() for name, tensor in filmstrip.load(directory, quiet=True).model.state_dict().items()
    }
    raw = bytearray((directory / WEIGHTS).read_bytes())
    end = 8 + struct.unpack("<Q", raw[:8])[0]
    for _ in range(data.draw(st.integers(1, 4), label="changes")):
        place = data.draw(st.integers(0, end - 1), label="place")
        raw[place] = data.draw(st.sampled_from(b'0123456789[]{}:,". \x00\xffFIBU') | st.integers(0, 255), label="byte")
    (directory / WEIGHTS).write_bytes(raw)
    try:
        loaded = filmstrip.load(directory, quiet=True).model.state_dict()
    except (CheckpointError, ConfigError) as error:
        assert "\n" not in str(error)
        assert run("check", directory, "--json").code in (1, 2)
    else:
        assert loaded.keys() == expected.keys()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.items())
    shutil.rmtree(directory)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_value_in_any_configuration_file(
    whole: Path, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A strange value is refused or does nothing; neither the loader nor the doctor ever crashes on one."""
    directory = shutil.copytree(whole, tmp_path_factory.mktemp("values") / "copy")
    files = ["config.json", "preprocessor_config.json", "generation_config.json", "tokenizer_config.json"]
    path = directory / data.draw(st.sampled_from(files), label="file")
    content = json.loads(path.read_text())
    place = content
    key = data.draw(st.sampled_from(sorted(place)), label="key")
    if isinstance(place[key], dict) and data.draw(st.booleans(), label="inside"):
        place = place[key]
        key = data.draw(st.sampled_from(sorted(place)), label="inner key")
    place[key] = data.draw(VALUES, label="value")
    path.write_text(json.dumps(content))
    try:
        filmstrip.load(directory, quiet=True)
    except (CheckpointError, ConfigError) as error:
        assert "\n" not in str(error)
        assert run("check", directory, "--json").code in (1, 2)
    else:
        assert run("check", directory, "--json").code in (0, 1)
    shutil.rmtree(directory)
