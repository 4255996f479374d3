"""Configuration files that contradict each other, or what is stored."""

from filmstrip.checkpoint.defaults import GENERATION_FILE
from filmstrip.checkpoint.fields import Fields
from filmstrip.checkpoint.towers import CONFIG_FILE
from filmstrip.config import ModelConfig, VisionConfig
from filmstrip.diagnostics.doctor.catalogue import Severity
from filmstrip.diagnostics.doctor.findings import Findings
from filmstrip.diagnostics.doctor.settings import Settings

_SECTIONS = ("text_config", "vision_config")
_STATED_BY_DEFAULT = (256, 576, 2056)  # what transformers writes into every config.json, whatever the towers are


def check_agreement(settings: Settings, stored_dtypes: list[str], has_head: bool, findings: Findings) -> None:
    """Hold config.json against itself, the other files and the dtypes of the stored tensors.

    `has_head`: a head is stored beside the embeddings.
    """
    values = settings.values
    if values is None or not all(isinstance(values.get(key), dict | None) for key in _SECTIONS):
        return
    sections = {key: Fields(values.get(key) or {}, f"{values.where}, {key}") for key in _SECTIONS}
    _check_dtypes(values, sections, stored_dtypes, findings)
    text = sections["text_config"] if settings.model is not None else values
    _check_stated_twice(values, text, has_head, findings)
    tower = settings.model.image_tower if settings.model is not None else settings.config
    if isinstance(tower, VisionConfig) and tower.image_size % tower.patch_size:
        what = f"{tower.image_size} pixels are not a multiple of the patch's {tower.patch_size}"
        findings.add("patch-remainder", CONFIG_FILE, what)
    if settings.model is not None:
        _check_lengths(values, settings.model, findings)
    _check_special_ids(settings, text, findings)


def _check_stated_twice(values: Fields, text: Fields, has_head: bool, findings: Findings) -> None:
    """Settings of the text tower that the top level repeats, and differently.

    transformers 5 writes a tied model with the flag true outside and, where nobody set it, false inside; it reads the
    outer one. Without a head in the files every reader must take the embeddings, so that is nothing to warn of.
    """
    for key, code in (("vocab_size", "vocabulary-stated-twice"), ("tie_word_embeddings", "tie-stated-twice")):
        if text is values or key not in values or key not in text or values.get(key) == text.get(key):
            continue
        what = f"{key} is {values.get(key)!r} at the top level and {text.get(key)!r} in text_config"
        harmless = code == "tie-stated-twice" and values.get(key) is True and not has_head
        findings.add(code, CONFIG_FILE, what, severity="note" if harmless else None)


def _dtype(fields: Fields) -> str | None:
    """`torch_dtype`, since transformers 4.56 `dtype`."""
    value = fields.get("dtype" if "dtype" in fields else "torch_dtype")
    return value if isinstance(value, str) else None


def _check_dtypes(values: Fields, sections: dict[str, Fields], stored: list[str], findings: Findings) -> None:
    outer = _dtype(values)
    for name, section in sections.items():
        inner = _dtype(section)
        if outer is not None and inner is not None and inner != outer:
            findings.add("inner-dtype", CONFIG_FILE, f"{name} says {inner}, the top level {outer}")
    if outer is not None and len(stored) == 1 and outer not in (stored[0], "auto"):
        findings.add("dtype-differs", CONFIG_FILE, f"torch_dtype is {outer}, the tensors are {stored[0]}")


def _check_lengths(values: Fields, model: ModelConfig, findings: Findings) -> None:
    """Numbers of visual tokens that config.json states, against those that the towers make."""
    per_image, per_frame, joint = model.tokens_per_frame("image"), model.tokens_per_frame("video"), model.joint_tokens
    sources = {"image_seq_length": f"an image gives {per_image} tokens"}
    if model.video_token_id is not None:
        of_all = [f"all frames together {joint}"] if joint else []
        of_each = [f"a video's frame gives {per_frame} tokens"] if per_frame or not joint else []
        sources["video_seq_length"] = ", ".join([*of_each, *of_all])
    for key, source in sources.items():
        value = values.get(key)
        fits = value == per_image
        if key == "video_seq_length" and isinstance(value, int):
            frames = (value - joint) // per_frame if per_frame else 1
            fits = frames > 0 and value == model.clip_tokens(frames)
        if key in values and not fits:
            what = f"{key} is {value!r}, {source}"
            severity: Severity | None = "note" if value in _STATED_BY_DEFAULT else None
            findings.add("sequence-length", CONFIG_FILE, what, severity=severity)


def _check_special_ids(settings: Settings, text: Fields, findings: Findings) -> None:
    """BOS and EOS as generation would use them against config.json and the tokenizer; padding against config.json."""
    generation, tokenizer = settings.generation, settings.tokenizer
    if generation is None:
        return
    used = {"bos_token_id": (generation.bos_id,), "eos_token_id": generation.eos_ids}
    for key, ids in used.items():
        value = text.get(key)
        stated = value if isinstance(value, list) else [value]
        if key in text and not any(token_id in ids for token_id in stated):
            findings.add(
                "special-ids-disagree", GENERATION_FILE, f"{key} is {_listed(ids)}, text_config says {value!r}"
            )
        token_id = None if tokenizer is None else tokenizer.bos_id if key == "bos_token_id" else tokenizer.eos_id
        if token_id is not None and token_id not in ids:
            what = f"{key} is {_listed(ids)}, the tokenizer's is {token_id}"
            findings.add("special-ids-disagree", GENERATION_FILE, what)
    model, pad = settings.model, generation.pad_id
    if model is None or pad is None:
        return
    if pad != model.pad_token_id:
        what = f"pad_token_id is {pad}, config.json says {model.pad_token_id}"
        findings.add("special-ids-disagree", GENERATION_FILE, what)
    if tokenizer is not None and tokenizer.pad_id not in (None, pad):
        what = f"pad_token_id is {pad}, the tokenizer's is {tokenizer.pad_id}"
        findings.add("special-ids-disagree", GENERATION_FILE, what)


def _listed(ids: tuple[int | None, ...]) -> str:
    return ", ".join(str(number) for number in ids)
