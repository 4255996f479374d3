"""Tiny random checkpoints in the layout of the original release, for tests. Its names are written out here once more,
so that the loader's tables do not test themselves.
"""

import json
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file

from filmstrip.testing.tiny import tiny_hf_config, tiny_state, tiny_vocabulary_size, write_json, write_tiny_tokenizer

Place = Literal["main", "inside", "both"]
State = dict[str, torch.Tensor]

_TOWERS = {"image_tower": "LanguageBindImage", "video_tower": "LanguageBindVideo"}
# Prefixes of layout C and of the original; inside the towers both use CLIP's own names.
_PREFIXES = (
    ("model.language_model.", "model."),
    ("model.image_tower.", "model.image_tower.image_tower."),
    ("model.video_tower.", "model.video_tower.video_tower."),
    ("model.multi_modal_projector.linear_1.", "model.mm_projector.0."),
    ("model.multi_modal_projector.linear_2.", "model.mm_projector.2."),
)


def original_config(**overrides: Any) -> dict[str, Any]:
    """A `config.json` with the keys of the published one (reference sheet 1.4); its text tower is `tiny_hf_config`'s.

    The vocabulary ends before any placeholder. Overrides are top-level keys, None removes one.
    """
    text = tiny_hf_config()["text_config"] | {"vocab_size": tiny_vocabulary_size(), "rope_scaling": None}
    config = text | {
        "architectures": ["LlavaLlamaForCausalLM"],
        "model_type": "llava",
        "pad_token_id": 0,
        "image_aspect_ratio": "pad",
        "mm_hidden_size": 32,
        "mm_image_tower": "LanguageBind/LanguageBind_Image",
        "mm_video_tower": "LanguageBind/LanguageBind_Video_merge",
        "mm_projector_type": "mlp2x_gelu",
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.31.0",
    }
    return {key: value for key, value in (config | overrides).items() if value is not None}


def languagebind_config(frames: int = 0, **overrides: Any) -> dict[str, Any]:
    """The `config.json` of a LanguageBind tower; with `frames` it has temporal attention over that many."""
    vision = tiny_hf_config()["vision_config"] | {
        "add_time_attn": frames > 0,
        "num_frames": max(frames, 1),
        "hidden_act": "gelu",
        "force_patch_dropout": 0.0,
        "lora_r": 0,
        "projection_dim": 16,
    }
    kind = "video_tower" if frames else "image_tower"
    return {"architectures": [_TOWERS[kind]], "model_type": _TOWERS[kind], "vision_config": vision | overrides}


def original_state(*, frames: int = 3, seed: int = 0) -> State:
    """Random float32 weights under the original's names: text tower, projector, both towers."""
    state = tiny_state(tiny_hf_config(text_vocab_size=tiny_vocabulary_size()), seed=seed, temporal_frames=frames)
    return {_rename(name): tensor for name, tensor in state.items()}


def _rename(name: str) -> str:
    for old, new in _PREFIXES:
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def write_original_checkpoint(
    directory: Path,
    *,
    frames: int = 3,
    state: State | None = None,
    config: dict[str, Any] | None = None,
    towers: Place = "main",
    pickled: bool = False,
) -> State:
    """Write a whole directory; returns its weights under the original's names.

    Tower weights are in the main checkpoint, in `image_tower/` and `video_tower/` inside the directory (as a
    LanguageBind repository has them, with a piece of its text model), or in both places. `pickled` writes
    `pytorch_model.bin`, in the main checkpoint two shards and their index.
    """
    directory.mkdir(parents=True, exist_ok=True)
    state = original_state(frames=frames) if state is None else state
    write_json(directory / "config.json", original_config() if config is None else config)
    write_json(directory / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0})
    write_plain_tokenizer(directory)
    for tower in _TOWERS:
        prefix = f"model.{tower}.{tower}."
        inside = directory / tower
        inside.mkdir(exist_ok=True)
        write_json(inside / "config.json", languagebind_config(frames if tower == "video_tower" else 0))
        if towers != "main":
            names = [name for name in state if name.startswith(prefix)]
            repository = {f"vision_model.{name.removeprefix(prefix)}": state[name] for name in names}
            repository |= {"text_model.final_layer_norm.weight": torch.ones(8), "logit_scale": torch.tensor(4.6)}
            _save(inside, repository, pickled, shards=1)
    main = {name: tensor for name, tensor in state.items() if towers != "inside" or "_tower." not in name}
    _save(directory, main, pickled, shards=2 if pickled else 1)
    return state


def write_plain_tokenizer(directory: Path) -> None:
    """The tokenizer of `write_tiny_tokenizer` as a text model has it: no tokens for media or padding."""
    write_tiny_tokenizer(directory)
    path = directory / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["added_tokens"] = [token for token in content["added_tokens"] if token["id"] < tiny_vocabulary_size()]
    path.write_text(json.dumps(content), encoding="utf-8")
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        write_json(directory / name, json.loads((directory / name).read_text()) | {"pad_token": "<unk>"})


def _save(directory: Path, state: State, pickled: bool, shards: int) -> None:
    if not pickled:
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, directory / "model.safetensors")
        return
    if shards == 1:
        torch.save(state, directory / "pytorch_model.bin")
        return
    names = list(state)
    weight_map: dict[str, str] = {}
    for number in range(shards):
        file = f"pytorch_model-{number + 1:05d}-of-{shards:05d}.bin"
        part = names[number::shards]
        torch.save({name: state[name] for name in part}, directory / file)
        weight_map |= dict.fromkeys(part, file)
    write_json(directory / "pytorch_model.bin.index.json", {"metadata": {}, "weight_map": weight_map})
