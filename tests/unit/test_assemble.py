"""Assembling: a LLaMA and a CLIP checkpoint, written by transformers, become a model that runs here and there."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from filmstrip.api import load
from filmstrip.checkpoint.assemble import AssembleOptions, assemble
from filmstrip.checkpoint.convert_output import Output, WriteOptions, write_output
from filmstrip.checkpoint.convert_vocabulary import MULTIPLE
from filmstrip.checkpoint.read import read_checkpoint
from filmstrip.checkpoint.towers import load_text_tower, load_vision_tower
from filmstrip.diagnostics.doctor import diagnose
from filmstrip.errors import CheckpointError, ConfigError, FilmstripError
from filmstrip.ops.masks import causal_mask
from filmstrip.testing.original import languagebind_config, original_state, write_plain_tokenizer
from filmstrip.testing.tiny import random_tensor, tiny_hf_config, tiny_vocabulary_size, write_json

transformers = pytest.importorskip("transformers")
VOCABULARY = tiny_vocabulary_size()
TEXTS = ("what is this red square", "USER: how many</s> the video", "é ☃")


def randomise(model: Any, seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            parameter.copy_(random_tensor(name, tuple(parameter.shape), generator))
    return model.eval()


def write_llama(directory: Path, **changes: Any) -> Path:
    values = {key: value for key, value in tiny_hf_config()["text_config"].items() if key != "model_type"}
    config = transformers.LlamaConfig(**(values | {"vocab_size": VOCABULARY} | changes))
    randomise(transformers.LlamaForCausalLM(config), 1).save_pretrained(directory)
    write_plain_tokenizer(directory)
    return directory


def write_clip(directory: Path, *, whole: bool = False, seed: int = 2, **changes: Any) -> Path:
    values = {key: value for key, value in tiny_hf_config()["vision_config"].items() if key != "model_type"} | changes
    if whole:
        text = {
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "vocab_size": 9,
        }
        model = transformers.CLIPModel(transformers.CLIPConfig(vision_config=values, text_config=text))
    else:
        model = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**values))
    randomise(model, seed).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("towers") / "llama")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("towers") / "clip")


def build(llama: Path, clip: Path, directory: Path, **options: Any) -> tuple[Path, Output]:
    output = assemble(llama, clip, AssembleOptions(**options))
    write_output(output, directory, WriteOptions())
    return directory, output


def text_logits(decoder: Any, ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        x = decoder.token_embedding(torch.tensor([ids]))
        positions = torch.arange(len(ids))[None]
        return decoder.logits(decoder(x, positions, causal_mask(None, len(ids), len(ids), x.device)))


@pytest.mark.parametrize("tied", [False, True])
def test_text_is_answered_as_before(tmp_path: Path, clip: Path, tied: bool) -> None:
    """The same tokens and, over the old vocabulary, bit for bit the same logits; new rows never win."""
    llama = write_llama(tmp_path / "llama", tie_word_embeddings=tied)
    directory, output = build(llama, clip, tmp_path / "out")
    assistant = load(directory, quiet=True)
    alone, _ = load_text_tower(llama)
    from filmstrip.text.tokenizer import Tokenizer

    before = Tokenizer.from_directory(llama)
    for text in TEXTS:
        ids = before.encode(text).ids
        assert assistant.processor.tokenizer.encode(text).ids == ids
        ours = assistant.model(torch.tensor([ids]))
        assert torch.equal(ours[..., :VOCABULARY], text_logits(alone, ids))
        assert int(ours.argmax(-1).max()) < VOCABULARY
    assert output.added_rows == 448 - VOCABULARY and assistant.config.text.vocab_size % MULTIPLE == 0
    assert assistant.config.text.tie_embeddings == tied


def test_both_towers_are_the_clip(tmp_path: Path, llama: Path, clip: Path) -> None:
    model = load(build(llama, clip, tmp_path / "out")[0], quiet=True).model
    alone, _ = load_vision_tower(clip)
    for tower in (model.image_tower, model.video_tower):
        for (name, ours), (other, theirs) in zip(tower.state_dict().items(), alone.state_dict().items(), strict=True):
            assert name == other and torch.equal(ours, theirs)
    assert model.image_tower is not model.video_tower


def test_a_whole_clip_and_other_dtypes(tmp_path: Path, llama: Path) -> None:
    whole = write_clip(tmp_path / "whole", whole=True)
    directory, output = build(llama, whole, tmp_path / "out", dtype=torch.bfloat16)
    assert output.dtypes == ("bfloat16",) and sum(output.left_out.values()) > 0
    assert json.loads((directory / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert load(directory, quiet=True).origin.dtype == "bfloat16"


def test_the_projector_is_seeded_and_of_the_documented_scale(tmp_path: Path, llama: Path, clip: Path) -> None:
    first, again, other = (
        load(build(llama, clip, tmp_path / str(index), seed=seed)[0], quiet=True).model.projector.state_dict()
        for index, seed in enumerate((3, 3, 4))
    )
    for name, tensor in first.items():
        assert torch.equal(tensor, again[name]) and not torch.equal(tensor, other[name])
        inputs = first[f"{name.split('.')[0]}.weight"].shape[1]
        assert float(tensor.abs().max()) <= inputs**-0.5 < 1.15 * float(tensor.abs().max())


@pytest.mark.parametrize(
    ("names", "suffix"),
    [
        (("model.mm_projector.0", "model.mm_projector.2"), ".bin"),
        (("mm_projector.0", "mm_projector.2"), ".safetensors"),
        (("0", "2"), ".bin"),
        (("multi_modal_projector.linear_1", "multi_modal_projector.linear_2"), ".safetensors"),
        (("model.multi_modal_projector.linear_1", "model.multi_modal_projector.linear_2"), ".bin"),
        (("linear_1", "linear_2"), ".safetensors"),
    ],
)
def test_a_trained_projector_is_taken(
    tmp_path: Path, llama: Path, clip: Path, names: tuple[str, str], suffix: str
) -> None:
    generator = torch.Generator().manual_seed(5)
    state = {}
    for name, width in zip(names, (32, 64), strict=True):
        state[f"{name}.weight"] = torch.randn((64, width), generator=generator)
        state[f"{name}.bias"] = torch.randn((64,), generator=generator)
    path = tmp_path / f"mm_projector{suffix}"
    torch.save(state, path) if suffix == ".bin" else save_file(state, path)
    directory, output = build(llama, clip, tmp_path / "out", projector=path)
    projector = load(directory, quiet=True).model.projector
    assert torch.equal(projector.linear_1.weight, state[f"{names[0]}.weight"])
    assert torch.equal(projector.linear_2.bias, state[f"{names[1]}.bias"])
    assert not any("untrained" in note for note in output.notes)


def test_projector_files_that_do_not_fit(tmp_path: Path, llama: Path, clip: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "owned",)

    wide = {"linear_1.weight": torch.zeros(64, 48), "linear_1.bias": torch.zeros(64)}
    wide |= {"linear_2.weight": torch.zeros(64, 64), "linear_2.bias": torch.zeros(64)}
    cases: dict[str, tuple[Any, str]] = {
        "wide": (wide, r"has shape \(64, 48\), its configuration asks for \(64, 32\)"),
        "half": ({name: value for name, value in wide.items() if "1" in name}, "is missing"),
        "other": ({"embed_tokens.weight": torch.zeros(3)}, "none of its 1 tensors belongs"),
        "evil": ({"0.weight": Evil()}, "nothing is executed|refers to|not pickled|only tensors"),
    }
    for name, (content, message) in cases.items():
        torch.save(content, tmp_path / f"{name}.bin")
        with pytest.raises(CheckpointError, match=message):
            assemble(llama, clip, AssembleOptions(projector=tmp_path / f"{name}.bin"))
    with pytest.raises(CheckpointError, match="is not there"):
        assemble(llama, clip, AssembleOptions(projector=tmp_path / "nothing.bin"))
    assert not (tmp_path / "owned").exists()


def video_logits(directory: Path, preset: str) -> torch.Tensor:
    model = load(directory, preset=preset, quiet=True).model
    generator = torch.Generator().manual_seed(1)
    ids = [1, 300, *[model.config.video_token_id or 0] * (4 * model.config.tokens_per_frame("video")), 301]
    with torch.inference_mode():
        return model(torch.tensor([ids]), pixel_values_videos=torch.randn((1, 4, 3, 28, 28), generator=generator))


def test_new_temporal_attention_changes_nothing_and_can_learn(tmp_path: Path, llama: Path, clip: Path) -> None:
    directory, output = build(llama, clip, tmp_path / "out", temporal_frames=4)
    assert read_checkpoint(directory).temporal_frames == 4
    assert load(directory, quiet=True).origin.temporal_attention  # without being asked for
    torch.testing.assert_close(
        video_logits(directory, "original"), video_logits(directory, "transformers"), rtol=0, atol=1e-5
    )
    assert any("temporal attention over 4 frames is untrained" in note for note in output.notes)
    assistant = load(directory, preset="original", quiet=True)
    temporal = assistant.model.video_tower.blocks[0].temporal.requires_grad_(True)
    ids = torch.tensor([[1, *[assistant.config.video_token_id] * (4 * 5), 300]])
    assistant.model(ids, pixel_values_videos=torch.randn(1, 4, 3, 28, 28)).square().sum().backward()
    assert float(temporal.attention.out_proj.weight.grad.abs().max()) > 0
    assert float(temporal.embedding.grad.abs().max()) > 0


def test_shared_towers_are_one_module(tmp_path: Path, llama: Path, clip: Path) -> None:
    model = load(build(llama, clip, tmp_path / "out", shared_towers=True)[0], quiet=True).model
    assert model.image_tower is model.video_tower


def test_a_video_tower_of_its_own(tmp_path: Path, llama: Path, clip: Path) -> None:
    """LanguageBind's, with temporal attention; its weights are those of the original's video tower."""
    prefix, video = "model.video_tower.video_tower.", tmp_path / "languagebind"
    video.mkdir()
    state = {f"vision_model.{k.removeprefix(prefix)}": v for k, v in original_state().items() if k.startswith(prefix)}
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, video / "model.safetensors")
    write_json(video / "config.json", languagebind_config(3, hidden_act="quick_gelu"))
    directory, _ = build(llama, clip, tmp_path / "out", video_vision=video)
    model = load(directory, preset="original", quiet=True).model
    alone, _ = load_vision_tower(video)
    for (name, ours), (other, theirs) in zip(
        model.video_tower.state_dict().items(), alone.state_dict().items(), strict=True
    ):
        assert name == other and torch.equal(ours, theirs)
    assert not torch.equal(model.image_tower.patch_embedding.weight, model.video_tower.patch_embedding.weight)
    for options, message in (
        ({"video_vision": video, "shared_towers": True}, "shared towers are one checkpoint"),
        ({"video_vision": video, "temporal_frames": 8}, "has temporal attention already"),
    ):
        with pytest.raises(ConfigError, match=message):
            assemble(llama, clip, AssembleOptions(**options))
    with pytest.raises(ConfigError, match="the image tower has temporal attention"):
        assemble(llama, video, AssembleOptions())


def test_transformers_loads_the_result_and_agrees(tmp_path: Path, llama: Path, clip: Path) -> None:
    from filmstrip.oracle.processors import reference_tokenizer
    from filmstrip.oracle.reference import load_reference

    directory, _ = build(llama, clip, tmp_path / "out")
    assistant, reference = load(directory, quiet=True), load_reference(directory)
    config = assistant.config
    ids = [1, *[config.image_token_id] * 4, 300, *[config.video_token_id or 0] * 15, 301]
    inputs = {
        "input_ids": torch.tensor([ids]),
        "pixel_values_images": torch.randn(1, 3, 28, 28),
        "pixel_values_videos": torch.randn(1, 3, 3, 28, 28),
    }
    with torch.inference_mode():
        torch.testing.assert_close(assistant.model(**inputs), reference(**inputs).logits, rtol=0, atol=1e-4)
    theirs = reference_tokenizer(directory)
    for text in (*TEXTS, "USER: <video>\nwhat <image> ASSISTANT:"):
        assert theirs(text)["input_ids"] == assistant.processor.tokenizer.encode(text).ids
    assert theirs.padding_side == "left" and theirs.pad_token_id == config.pad_token_id
    message = {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "what"}]}
    template = (directory / "chat_template.jinja").read_text()
    text = theirs.apply_chat_template([message], chat_template=template, tokenize=False, add_generation_prompt=True)
    assert text == "USER: <video>\nwhat ASSISTANT:"


def test_the_doctor_finds_the_result_sound_and_knows_why_its_towers_are_equal(
    tmp_path: Path, llama: Path, clip: Path
) -> None:
    """Saved again, as training does it, the record stays."""
    directory, _ = build(llama, clip, tmp_path / "out")
    load(directory, quiet=True).save(tmp_path / "saved")
    for place in (directory, tmp_path / "saved"):
        diagnosis = diagnose(place)
        assert diagnosis.sound, diagnosis.findings
        assert "towers-assembled" in {finding.code for finding in diagnosis.findings}
    for number, options in enumerate(({"shared_towers": True}, {"video_vision": write_clip(tmp_path / "b", seed=5)})):
        directory, _ = build(llama, clip, tmp_path / f"out{number}", **options)
        assert read_checkpoint(directory).extras.copied_towers is None
        assert diagnose(directory).sound


def test_the_card_says_what_it_is_made_of(tmp_path: Path, llama: Path, clip: Path) -> None:
    directory, output = build(llama, clip, tmp_path / "out", seed=7)
    card = (directory / "README.md").read_text()
    for tower in (load_text_tower(llama)[1], load_vision_tower(clip)[1]):
        assert tower.weights_hash in card and tower.weights_hash in output.sources.values()
    for words in (
        "untrained (random, seed 7)",
        "448 rows",
        "licences of the towers",
        "llama: LLaMA text tower",
        "clip: CLIP",
    ):
        assert words in card, words


@pytest.mark.parametrize("swap", ["text", "vision", "neither"])
def test_what_is_no_tower_is_named(tmp_path: Path, llama: Path, clip: Path, swap: str) -> None:
    text, vision = {"text": (clip, clip), "vision": (llama, llama), "neither": (tmp_path, clip)}[swap]
    message = {
        "text": "is not a LLaMA: CLIP",
        "vision": "is not a CLIP vision tower: LLaMA",
        "neither": "no config.json",
    }
    with pytest.raises(FilmstripError, match=message[swap]) as caught:
        assemble(text, vision, AssembleOptions())
    assert "\n" not in str(caught.value)


def test_a_layer_that_is_not_there(llama: Path, clip: Path) -> None:
    with pytest.raises(ConfigError, match="vision feature layer -9 is not among"):
        assemble(llama, clip, AssembleOptions(select_layer=-9))
