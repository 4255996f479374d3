"""Tiny random checkpoints in Hugging Face format, written without transformers: configuration, weights, tokenizer.

The names and shapes are written out here a second time on purpose: the tests of the loader must not take them from
the loader's own tables. `oracles.load_reference` proves that transformers reads the same files.
"""

import json
import math
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

DiskLayout = Literal["A", "B", "C", "D"]
ProcessorLayout = Literal["flat", "nested"]

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'video' %}{{ '<video>\\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] + ' ' }}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
WORDS = (
    "USER",
    "ASSISTANT",
    "what",
    "is",
    "this",
    "the",
    "a",
    "red",
    "square",
    "moves",
    "left",
    "how",
    "many",
    "video",
)

# Prefixes of the four published layouts, relative to the one transformers 5 has in memory (C).
_PREFIXES: dict[str, tuple[tuple[str, str], ...]] = {
    "A": (
        ("model.language_model.", "language_model.model."),
        ("lm_head.", "language_model.lm_head."),
        ("model.image_tower.", "image_tower.vision_model."),
        ("model.video_tower.", "video_tower.vision_model."),
        ("model.vision_tower.", "vision_tower.vision_model."),
        ("model.multi_modal_projector.", "multi_modal_projector."),
        ("model.image_newline", "image_newline"),
    ),
    "B": (
        ("model.image_tower.", "model.image_tower.vision_model."),
        ("model.video_tower.", "model.video_tower.vision_model."),
        ("model.vision_tower.", "model.vision_tower.vision_model."),
    ),
    "C": (),
    "D": (
        ("model.language_model.", "language_model.model."),
        ("lm_head.", "language_model.lm_head."),
        ("model.image_tower.", "image_tower."),
        ("model.video_tower.", "video_tower."),
        ("model.vision_tower.", "vision_tower."),
        ("model.multi_modal_projector.", "multi_modal_projector."),
        ("model.image_newline", "image_newline"),
    ),
}

# Placeholders and padding in the order of their ids, which follow the vocabulary (reference sheet 9).
_ADDED_TOKENS: dict[str, tuple[str, ...]] = {
    "video_llava": ("<image>", "<video>", "<pad>"),
    "llava": ("<image>", "<pad>"),
    "llava_next_video": ("<video>", "<image>"),  # padded with `<unk>`
}
# Names of the processor, the image processor and the video processor.
_PROCESSORS: dict[str, tuple[str, str, str]] = {
    "video_llava": ("VideoLlavaProcessor", "VideoLlavaImageProcessor", "VideoLlavaVideoProcessor"),
    "llava": ("LlavaProcessor", "CLIPImageProcessor", ""),
    "llava_next_video": ("LlavaNextVideoProcessor", "LlavaNextImageProcessor", "LlavaNextVideoVideoProcessor"),
}


def tiny_hf_config(**overrides: Any) -> dict[str, Any]:
    """The `config.json` of a tiny Video-LLaVA: 28-pixel frames in 14-pixel patches, 5 tokens a frame.

    Text 64 wide and 3 deep with 4 heads over 2 key/value heads; towers 32 wide and 4 deep; vocabulary 448 with the
    placeholders of `write_tiny_tokenizer`. Overrides are top-level keys, or `text_<key>` / `vision_<key>` for the
    two sections; None removes a key.
    """
    vocab = tiny_vocabulary_size()
    config: dict[str, Any] = {
        "architectures": ["VideoLlavaForConditionalGeneration"],
        "model_type": "video_llava",
        "image_token_index": vocab,
        "video_token_index": vocab + 1,
        "pad_token_id": vocab + 2,
        "projector_hidden_act": "gelu",
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "image_seq_length": 4,
        "video_seq_length": 40,
        "torch_dtype": "float32",
        "text_config": {
            "model_type": "llama",
            "vocab_size": 448,
            "hidden_size": 64,
            "intermediate_size": 112,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            "rms_norm_eps": 1e-5,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        "vision_config": {
            "model_type": "clip_vision_model",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "image_size": 28,
            "patch_size": 14,
        },
    }
    for name, value in overrides.items():
        section, key = config, name
        for prefix in ("text_", "vision_"):
            if name.startswith(prefix) and name not in _TOP_LEVEL:
                section, key = config[f"{prefix}config"], name.removeprefix(prefix)
        if value is None:
            section.pop(key, None)
        else:
            section[key] = value
    return config


def tiny_sister_config(model_type: Literal["llava", "llava_next_video"], **overrides: Any) -> dict[str, Any]:
    """The `config.json` of a tiny LLaVA-1.5 or LLaVA-NeXT-Video: 56-pixel images in 14-pixel patches, 16 a tile.

    A pooled frame has 4 tokens. Overrides as for `tiny_hf_config`.
    """
    vocab, side = tiny_vocabulary_size(), 56
    own: dict[str, Any] = {"model_type": model_type, "vision_image_size": side, "image_seq_length": 16}
    if model_type == "llava":
        own |= {"architectures": ["LlavaForConditionalGeneration"], "video_token_index": None, "video_seq_length": None}
        own |= {"image_token_index": vocab, "pad_token_id": vocab + 1}
    else:
        own |= {"architectures": ["LlavaNextVideoForConditionalGeneration"], "spatial_pool_mode": "average"}
        own |= {"image_token_index": vocab + 1, "video_token_index": vocab, "pad_token_id": 0}
        own |= {"spatial_pool_stride": 2, "video_seq_length": 128}
        own["image_grid_pinpoints"] = [[side * rows, side * columns] for rows, columns in _TINY_GRIDS]
    return tiny_hf_config(**own | overrides)


_TINY_GRIDS = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))
_TOP_LEVEL = ("text_config", "vision_config", "vision_feature_layer", "vision_feature_select_strategy")


def tiny_shapes(config: dict[str, Any], *, temporal_frames: int = 0) -> dict[str, tuple[int, ...]]:
    """Name (layout C) and shape of every tensor that transformers stores for `config`.

    With `temporal_frames` the video tower also has the original release's temporal attention (its tensor names
    inside the tower, reference sheet 2.5).
    """
    text, vision = config["text_config"], config["vision_config"]
    shapes = _text_shapes(text)
    if not config.get("tie_word_embeddings", False):
        shapes["lm_head.weight"] = (text["vocab_size"], text["hidden_size"])
    towers = ("image_tower", "video_tower") if config["model_type"] == "video_llava" else ("vision_tower",)
    if config["model_type"] == "llava_next_video":
        shapes["model.image_newline"] = (text["hidden_size"],)
    for tower in towers:
        frames = temporal_frames if tower == "video_tower" else 0
        shapes |= {f"model.{tower}.{name}": shape for name, shape in _vision_shapes(vision, frames).items()}
    layers = config["vision_feature_layer"]
    width_in = vision["hidden_size"] * (len(layers) if isinstance(layers, list) else 1)
    for name, width in (("linear_1", width_in), ("linear_2", text["hidden_size"])):
        shapes[f"model.multi_modal_projector.{name}.weight"] = (text["hidden_size"], width)
        if config.get("multimodal_projector_bias", True):
            shapes[f"model.multi_modal_projector.{name}.bias"] = (text["hidden_size"],)
    return shapes


def _text_shapes(text: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    hidden, inner, heads = text["hidden_size"], text["intermediate_size"], text["num_attention_heads"]
    head_dim = text.get("head_dim") or hidden // heads
    q_width = heads * head_dim
    kv_width = text.get("num_key_value_heads", heads) * head_dim
    shapes: dict[str, tuple[int, ...]] = {"model.language_model.embed_tokens.weight": (text["vocab_size"], hidden)}
    for i in range(text["num_hidden_layers"]):
        layer = f"model.language_model.layers.{i}"
        for name, width in (("q", q_width), ("k", kv_width), ("v", kv_width)):
            shapes[f"{layer}.self_attn.{name}_proj.weight"] = (width, hidden)
        shapes[f"{layer}.self_attn.o_proj.weight"] = (hidden, q_width)
        shapes[f"{layer}.mlp.gate_proj.weight"] = shapes[f"{layer}.mlp.up_proj.weight"] = (inner, hidden)
        shapes[f"{layer}.mlp.down_proj.weight"] = (hidden, inner)
        shapes[f"{layer}.input_layernorm.weight"] = shapes[f"{layer}.post_attention_layernorm.weight"] = (hidden,)
    shapes["model.language_model.norm.weight"] = (hidden,)
    biases = {"self_attn": text.get("attention_bias", False), "mlp": text.get("mlp_bias", False)}
    for name, shape in list(shapes.items()):
        if any(on and f".{part}." in name for part, on in biases.items()):
            shapes[name.replace(".weight", ".bias")] = shape[:1]
    return shapes


def _vision_shapes(vision: dict[str, Any], temporal_frames: int) -> dict[str, tuple[int, ...]]:
    width, inner, patch = vision["hidden_size"], vision["intermediate_size"], vision["patch_size"]
    positions = (vision["image_size"] // patch) ** 2 + 1
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.class_embedding": (width,),
        "embeddings.patch_embedding.weight": (width, vision.get("num_channels", 3), patch, patch),
        "embeddings.position_embedding.weight": (positions, width),
    }
    linear: dict[str, tuple[int, int]] = {"mlp.fc1": (inner, width), "mlp.fc2": (width, inner)}
    linear |= {f"self_attn.{name}_proj": (width, width) for name in ("k", "v", "q", "out")}
    norms = ["layer_norm1", "layer_norm2"]
    if temporal_frames:
        linear |= {f"temporal_attn.{name}_proj": (width, width) for name in ("k", "v", "q", "out")}
        norms.append("temporal_layer_norm1")
    for i in range(vision["num_hidden_layers"]):
        layer = f"encoder.layers.{i}"
        if temporal_frames:
            shapes[f"{layer}.temporal_embedding"] = (1, temporal_frames, width)
        for name, shape in linear.items():
            shapes[f"{layer}.{name}.weight"] = shape
            shapes[f"{layer}.{name}.bias"] = shape[:1]
        for norm in norms:
            shapes[f"{layer}.{norm}.weight"] = shapes[f"{layer}.{norm}.bias"] = (width,)
    for norm in ("pre_layrnorm", "post_layernorm"):
        shapes[f"{norm}.weight"] = shapes[f"{norm}.bias"] = (width,)
    return shapes


def random_tensor(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """A float32 tensor of the scale a trained one would have, so that no bias or norm hides a mistake."""
    values = torch.randn(shape, generator=generator)
    if "norm" in name and name.endswith("weight"):
        return 1.0 + 0.2 * values
    if name.endswith("bias"):
        return 0.2 * values
    if len(shape) > 1 and "embed" not in name:
        return values / math.sqrt(values[0].numel())
    return 0.5 * values


def tiny_state(config: dict[str, Any], *, seed: int = 0, temporal_frames: int = 0) -> dict[str, torch.Tensor]:
    """Random float32 weights for `config`, names of layout C; the same seed gives the same tensors."""
    generator = torch.Generator().manual_seed(seed)
    shapes = tiny_shapes(config, temporal_frames=temporal_frames)
    return {name: random_tensor(name, shape, generator) for name, shape in sorted(shapes.items())}


def rename_state(state: dict[str, torch.Tensor], layout: DiskLayout) -> dict[str, torch.Tensor]:
    """The same tensors under the names of `layout` (reference sheet 2.2), from those of layout C."""
    return {_rename(name, _PREFIXES[layout]): tensor for name, tensor in state.items()}


def _rename(name: str, prefixes: tuple[tuple[str, str], ...]) -> str:
    for old, new in prefixes:
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def _base_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """LLaMA-like: three special tokens, 256 bytes, printable ASCII, then one chain of merges for each word."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
    tokens += [chr(code) for code in range(33, 127)]
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        left = "▁"
        for letter in word:
            if left + letter not in tokens:
                tokens.append(left + letter)
                merges.append((left, letter))
            left += letter
    return {token: index for index, token in enumerate(tokens)}, merges


def tiny_vocabulary_size() -> int:
    """Entries before the placeholders, which follow in the order `<image>`, `<video>`, `<pad>`."""
    return len(_base_vocabulary()[0])


def tiny_tokenizer(model_type: str = "video_llava") -> Tokenizer:
    """A small byte-fallback BPE tokenizer built the way LLaMA's is with `legacy` false."""
    vocabulary, merges = _base_vocabulary()
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    special = ("<unk>", "<s>", "</s>", *_ADDED_TOKENS[model_type])
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    return tokenizer


def write_tiny_tokenizer(directory: Path, *, chat_template: str | None = None, model_type: str = "video_llava") -> None:
    """Write `tokenizer.json`, `tokenizer_config.json` and `special_tokens_map.json` as the hub's files look."""
    directory.mkdir(parents=True, exist_ok=True)
    tiny_tokenizer(model_type).save(str(directory / "tokenizer.json"))
    pad = "<pad>" if "<pad>" in _ADDED_TOKENS[model_type] else "<unk>"
    config: dict[str, Any] = {
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<s>",
        "clean_up_tokenization_spaces": False,
        "eos_token": "</s>",
        "legacy": False,
        "model_max_length": 512,
        "pad_token": pad,
        "padding_side": "left",
        "processor_class": _PROCESSORS[model_type][0],
        "tokenizer_class": "LlamaTokenizer",
        "unk_token": "<unk>",
    }
    if chat_template is not None:
        config["chat_template"] = chat_template
    write_json(directory / "tokenizer_config.json", config)
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": pad, "unk_token": "<unk>"}
    write_json(directory / "special_tokens_map.json", tokens)


def write_tiny_processor(directory: Path, config: dict[str, Any], layout: ProcessorLayout = "flat") -> None:
    """Write the processor files: `flat` as before transformers 5, `nested` as 5.23 saves them."""
    directory.mkdir(parents=True, exist_ok=True)
    size = config["vision_config"]["image_size"]
    processor, image_processor, video_processor = _PROCESSORS[config["model_type"]]
    image = {
        "crop_size": {"height": size, "width": size},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": list(CLIP_MEAN),
        "image_processor_type": image_processor,
        "image_std": list(CLIP_STD),
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"shortest_edge": size},
    }
    video = {key: value for key, value in image.items() if key != "image_processor_type"}
    video |= {"do_sample_frames": False, "video_processor_type": video_processor}
    if "image_grid_pinpoints" in config:
        image |= {"do_pad": True, "image_grid_pinpoints": config["image_grid_pinpoints"]}
    if layout == "flat":
        write_json(directory / "preprocessor_config.json", image | {"processor_class": processor})
        write_json(directory / "chat_template.json", {"chat_template": CHAT_TEMPLATE})
        return
    nested: dict[str, Any] = {
        "image_processor": image,
        "image_token": "<image>",
        "num_additional_image_tokens": 1,
        "patch_size": config["vision_config"]["patch_size"],
        "processor_class": processor,
        "vision_feature_select_strategy": config["vision_feature_select_strategy"],
    }
    if video_processor:
        nested |= {"video_processor": video, "video_token": "<video>"}
    write_json(directory / "processor_config.json", nested)
    (directory / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")


def write_tiny_checkpoint(
    directory: Path,
    config: dict[str, Any] | None = None,
    *,
    layout: DiskLayout = "A",
    seed: int = 0,
    temporal_frames: int = 0,
    processor: ProcessorLayout = "flat",
) -> dict[str, torch.Tensor]:
    """Write a whole checkpoint directory; returns its weights under the names of layout C."""
    config = config or tiny_hf_config()
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / "config.json", config)
    text = config["text_config"]
    generation = {"bos_token_id": text["bos_token_id"], "eos_token_id": text["eos_token_id"]}
    write_json(directory / "generation_config.json", generation | {"pad_token_id": config["pad_token_id"]})
    write_tiny_tokenizer(directory, model_type=config["model_type"])
    write_tiny_processor(directory, config, processor)
    state = tiny_state(config, seed=seed, temporal_frames=temporal_frames)
    save_file(rename_state(state, layout), directory / "model.safetensors", metadata={"format": "pt"})
    return state


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write `content` as the hub's files are: indented, sorted, newline at the end."""
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
