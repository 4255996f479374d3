"""`generation_config.json`: the special ids and the way of sampling that a checkpoint asks for."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filmstrip.checkpoint.fields import Fields
from filmstrip.checkpoint.json_file import read_json
from filmstrip.config import SamplingConfig

GENERATION_FILE = "generation_config.json"
MAX_EOS_IDS = 64

# Methods of decoding that are not built; the value is the one that means "off".
_IGNORED_UNLESS: dict[str, Any] = {
    "num_beams": 1,
    "num_beam_groups": 1,
    "no_repeat_ngram_size": 0,
    "min_new_tokens": 0,
    "min_length": 0,
    "typical_p": 1.0,
    "penalty_alpha": 0.0,
    "length_penalty": 1.0,
}


@dataclass(frozen=True)
class GenerationDefaults:
    """What generation does when the user says nothing. `warnings` name settings of the file that are ignored."""

    bos_id: int | None = 1
    eos_ids: tuple[int, ...] = (2,)
    pad_id: int | None = None
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    warnings: tuple[str, ...] = ()


def read_generation_defaults(directory: Path, config: Fields) -> GenerationDefaults:
    """Read `generation_config.json`; ids it does not give come from `config.json`, then from LLaMA's defaults.

    As in transformers, sampling settings count only with `do_sample`. Raises `ConfigError` naming a bad value.
    """
    path = directory / GENERATION_FILE
    fields = Fields(read_json(path) if path.is_file() else {}, str(path))
    text = config.section("text_config") or Fields({}, config.where)
    sources = (fields, config, text)
    eos = next((_ids(source, "eos_token_id") for source in sources if "eos_token_id" in source), (2,))
    bos = next((_ids(source, "bos_token_id")[0] for source in sources if "bos_token_id" in source), 1)
    pad = next((_ids(source, "pad_token_id")[0] for source in sources[:2] if "pad_token_id" in source), None)
    ignored = [
        f"{path} sets {key} to {fields.get(key)!r}, which is not supported and ignored"
        for key, off in _IGNORED_UNLESS.items()
        if fields.get(key) not in (None, off)
    ]
    return GenerationDefaults(bos, eos, pad, _sampling(fields), tuple(ignored))


def _ids(fields: Fields, key: str) -> tuple[int, ...]:
    value = fields.get(key)
    ids = value if isinstance(value, list) else [value]
    if not 0 < len(ids) <= MAX_EOS_IDS or not all(type(number) is int and number >= 0 for number in ids):
        raise fields.error(key, "expected a token id or a list of them")
    return tuple(ids)


def _sampling(fields: Fields) -> SamplingConfig:
    default = SamplingConfig()
    max_new_tokens = fields.integer("max_new_tokens", default.max_new_tokens)
    repetition_penalty = fields.number("repetition_penalty", 1.0)
    if not fields.boolean("do_sample", False):
        return SamplingConfig(max_new_tokens=max_new_tokens, repetition_penalty=repetition_penalty)
    return SamplingConfig(
        max_new_tokens=max_new_tokens,
        temperature=fields.number("temperature", 1.0),
        top_k=fields.integer("top_k", 50, low=0),  # transformers' default when sampling
        top_p=fields.number("top_p", 1.0),
        min_p=fields.number("min_p", 0.0),
        repetition_penalty=repetition_penalty,
    )


def generation_values(defaults: GenerationDefaults) -> dict[str, Any]:
    """The content of a `generation_config.json`."""
    eos, sampling = list(defaults.eos_ids), defaults.sampling
    values: dict[str, Any] = {
        "bos_token_id": defaults.bos_id,
        "eos_token_id": eos[0] if len(eos) == 1 else eos,
        "pad_token_id": defaults.pad_id,
        "max_new_tokens": sampling.max_new_tokens,
    }
    if sampling.repetition_penalty != 1.0:
        values["repetition_penalty"] = sampling.repetition_penalty
    if sampling.temperature > 0:
        values |= {"do_sample": True, "temperature": sampling.temperature, "top_k": sampling.top_k}
        values |= {"top_p": sampling.top_p, "min_p": sampling.min_p}
    return {key: value for key, value in values.items() if value is not None}
