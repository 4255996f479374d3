"""An answer, and the run card that says how it came about."""

import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

import torch

from filmstrip.config import Preset, SamplingConfig
from filmstrip.inputs import MediumTokens, token_map
from filmstrip.inputs.processor import Prompt
from filmstrip.media.clip import Clip, pixel_hash

StopReason = Literal["eos", "stop_string", "length"]

_RECORDED_PACKAGES = ("filmstrip", "torch", "numpy", "tokenizers", "pillow", "av")


@dataclass
class Timings:
    """Seconds. `first_token` runs from the question to the first token; `decode` covers the tokens after it.

    Time that whoever reads a stream takes between two pieces is in none of them.
    """

    decode_media: float = 0.0
    vision: float = 0.0
    prefill: float = 0.0
    first_token: float = 0.0
    decode: float = 0.0


@dataclass(frozen=True)
class Origin:
    """What answered: the parts of a run card that are the same for every answer of one loaded model.

    `changed` names the fields of `preset` that the user set apart from it. `copied_towers`: the checkpoint records that
    its video tower began as a copy of its image tower, which saving hands on. `compute` is the precision of the
    arithmetic, where that is another than the weights', `kv` that of keys and values, where it is another than the
    arithmetic's. `compiled`: the vision towers went through `torch.compile`. `quantization` is what a manifest says.
    `weights_files` tell files apart that `weights_hash`, where it is of samples, may not.
    """

    model: str
    description: str
    layout: str
    weights_hash: str
    preset: Preset
    temporal_attention: bool
    dtype: str
    device: str
    compute: str = ""
    kv: str = ""
    compiled: bool = False
    quantization: dict[str, str] | None = None
    weights_files: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    copied_towers: bool | None = None

    def preset_name(self, frame_sampler: str | None = None) -> str:
        """The preset's name, and whether what ran differs from it (in the frame sampler of one question, say)."""
        same = not self.changed and frame_sampler in (None, self.preset.frame_sampler)
        return self.preset.name if same else f"{self.preset.name}, changed"


@dataclass(frozen=True)
class Answer:
    """One answer. `token_ids` include the EOS that ended it; `text` does not.

    `run_card` is plain JSON data and enough to tell why another run answered differently. `prefix_reused` counts the
    prompt tokens that were already in the cache (later turns of a chat).
    """

    text: str
    token_ids: tuple[int, ...]
    stop_reason: StopReason
    timings: Timings
    prompt: Prompt = field(repr=False)
    media: tuple[Clip, ...] = field(repr=False)
    run_card: dict[str, Any] = field(repr=False)
    prefix_reused: int = 0

    @property
    def warnings(self) -> tuple[str, ...]:
        """What was unusual about the media or the prompt."""
        return self.prompt.warnings

    def to_dict(self) -> dict[str, Any]:
        """What `filmstrip ask --json` prints."""
        plan = self.prompt.plan
        return {
            "answer": self.text,
            "model": self.run_card["model"],
            "preset": self.run_card["preset"]["name"],
            "media": [media_entry(clip) for clip in self.media],
            "prompt_tokens": len(plan.input_ids),
            "visual_tokens": plan.visual_tokens,
            "generated_tokens": len(self.token_ids),
            "prefix_reused": self.prefix_reused,
            "token_ids": list(self.token_ids),
            "stop_reason": self.stop_reason,
            "timings": asdict(self.timings),
            "warnings": list(self.warnings),
            "run_card": self.run_card,
        }


def media_entry(clip: Clip) -> dict[str, Any]:
    """One medium as the JSON shows it."""
    frames = [{"index": index, "time": time} for index, time in zip(clip.indices, clip.times, strict=True)]
    return {"path": clip.path, "kind": clip.kind, "frames": frames, "total_frames": clip.total_frames}


def _tiles_entry(medium: MediumTokens) -> dict[str, Any]:
    """How an image was cut into tiles, for models that do so; nothing for other media."""
    if medium.tiling is None:
        return {}
    height, width = medium.tiling.image
    grid = {"rows": medium.tiling.rows, "columns": medium.tiling.columns, "pixels": medium.tiling.tile}
    return {"height": height, "width": width, "tiles": grid}


def make_run_card(
    origin: Origin, prompt: Prompt, media: Sequence[Clip], sampling: SamplingConfig, frame_sampler: str
) -> dict[str, Any]:
    """Everything that decides an answer, from the weights to the versions, as plain JSON data.

    `frames_sha256` is over the decoded frames, `pixels_sha256` over what the towers read.
    """
    hashes = {kind: iter(found) for kind, found in prompt.pixel_hashes.items()}
    return {
        "model": origin.model,
        "description": origin.description,
        "layout": origin.layout,
        "weights_hash": origin.weights_hash,
        "preset": asdict(origin.preset) | {"name": origin.preset_name(frame_sampler), "frame_sampler": frame_sampler},
        "temporal_attention": origin.temporal_attention,
        "dtype": origin.dtype,
        "compute": origin.compute or origin.dtype,
        "kv": origin.kv or origin.compute or origin.dtype,
        "compiled": origin.compiled,
        "quantization": origin.quantization,
        "device": origin.device,
        "media": [
            media_entry(clip)
            | _tiles_entry(medium)
            | {
                "frames_sha256": pixel_hash(clip.frames),
                "pixels_sha256": next(hashes[clip.kind]),
            }
            for clip, medium in zip(media, prompt.plan.media, strict=True)
        ],
        "prompt": prompt.rendered.text,
        "token_map": token_map.to_dict(prompt.plan),
        "sampling": asdict(sampling) | {"stop_strings": list(sampling.stop_strings)},
        "versions": {"python": platform.python_version(), **recorded_versions()},
    }


@cache
def recorded_versions() -> dict[str, str]:
    """Versions of the packages that an answer depends on."""
    found = {}
    for name in _RECORDED_PACKAGES:
        try:
            found[name] = torch.__version__ if name == "torch" else version(name)
        except PackageNotFoundError:  # a source tree on the path that was never installed
            found[name] = "unknown"
    return found
