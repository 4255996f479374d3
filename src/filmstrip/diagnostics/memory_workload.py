"""What a model is asked to do, as far as memory is concerned: how many rows, tokens and frames, in which precision."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, cast, get_args

from filmstrip.checkpoint.describe import AnyConfig
from filmstrip.config import MediaKind, ModelConfig, VisionConfig
from filmstrip.config.checks import require, require_choice
from filmstrip.diagnostics.params import PRECISION_BYTES, QUANTISED_BITS
from filmstrip.ops.attention import ATTENTION_BACKENDS

Training = Literal["align", "finetune", "lora", "full"]
TRAININGS: tuple[str, ...] = get_args(Training)
DEVICES = ("cpu", "cuda")
_COMPUTE = ("stored", "float32")
_KV = ("auto", "float16", "bfloat16")
MAX_COUNT = 1_000_000_000


@dataclass(frozen=True)
class Workload:
    """One call of the model, or one training step.

    Per row of the batch: `videos` clips of `frames` frames, `images` images (of `image_size`, height and width in
    pixels, where the model cuts images up), `prompt_tokens` of text and `new_tokens`: generated, or in training the
    answer that is given. `context` fixes all of these together, and `prompt_tokens` is what is left. `padded` rows
    differ in length and need a mask. `loss_tokens` are the positions of a row with a loss (None: all).

    `training`: `align` (the projector learns), `finetune` (projector and text tower), `lora` (adapters of rank
    `lora_rank` on the text tower's layers, and the projector), `full`; None is inference. In 16 bit what learns is kept
    in float32 and computed under autocast. `quantize` concerns weights that do not learn. `compute` is the precision of
    arithmetic: the weights' (`stored`), or `float32` with weights that stay as they are stored; `kv` that of keys and
    values that are kept, `auto` for the arithmetic's (`filmstrip.load`). `stored_bytes` are those of quantised weights
    in files.
    """

    batch: int = 1
    videos: int = 1
    frames: int = 8
    images: int = 0
    image_size: tuple[int, int] | None = None
    prompt_tokens: int = 64
    new_tokens: int = 256
    context: int | None = None
    padded: bool = False
    dtype: str = "bfloat16"
    quantize: str | None = None
    stored_bytes: int | None = None
    compute: str = "stored"
    kv: str = "auto"
    attention: str = "sdpa"
    device: str = "cuda"
    training: Training | None = None
    checkpointing: bool = False
    lora_rank: int = 128
    loss_tokens: int | None = None

    def __post_init__(self) -> None:
        least = {"batch": 1, "videos": 0, "frames": 1, "images": 0, "prompt_tokens": 0, "new_tokens": 0, "lora_rank": 1}
        for name, low in least.items():
            value = getattr(self, name)
            require(low <= value <= MAX_COUNT, f"{name.replace('_', ' ')} must be from {low} to {MAX_COUNT:,}")
        require_choice("dtype", self.dtype, PRECISION_BYTES)
        require_choice("attention backend", self.attention, ATTENTION_BACKENDS)
        require_choice("device", self.device, DEVICES)
        require_choice("compute", self.compute, _COMPUTE)
        require_choice("kv", self.kv, _KV)
        if self.quantize is not None:
            require_choice("quantisation", self.quantize, QUANTISED_BITS)
        if self.training is not None:
            require_choice("training", self.training, TRAININGS)
            require(self.dtype != "float16", "training in float16 needs loss scaling; use bfloat16 or float32")
            require(self.compute == "stored", "arithmetic apart from the weights is for inference")
            require(self.training in ("align", "lora") or not self.quantize, "weights that learn cannot be quantised")
        require(self.training is not None or not self.checkpointing, "activation checkpointing belongs to training")

    @property
    def element(self) -> int:
        """Bytes of one number in the precision of the arithmetic."""
        return PRECISION_BYTES[self.arithmetic]

    @property
    def arithmetic(self) -> str:
        """The dtype that activations and cache have."""
        return self.dtype if self.compute == "stored" else self.compute

    @property
    def kept(self) -> str:
        """The dtype of the keys and values that are kept."""
        return self.arithmetic if self.kv == "auto" else self.kv

    @property
    def widens(self) -> bool:
        """Whether weights are unpacked or widened for their products."""
        return self.quantize is not None or self.arithmetic != self.dtype


@dataclass(frozen=True)
class Extent:
    """A workload on a particular model: the lengths that the formulas need, over the whole batch unless said otherwise.

    `tiles` are the pictures that the image tower sees, `clips` those of the video tower; `image_tokens` and
    `video_tokens` come out; `length` is the prompt of one row with media, `capacity` the slots of one row's cache.
    """

    batch: int
    tiles: int
    clips: int
    frames: int
    image_tokens: int
    video_tokens: int
    length: int
    capacity: int

    @property
    def visual_tokens(self) -> int:
        """Tokens of all media."""
        return self.image_tokens + self.video_tokens


@dataclass(frozen=True)
class PhaseEstimate:
    """Bytes of one phase: what stays, by name, and the most that comes and goes meanwhile (`transient`)."""

    name: str
    resident: Mapping[str, int]
    transient: int

    @property
    def total(self) -> int:
        """Bytes at the worst moment of the phase."""
        return sum(self.resident.values()) + self.transient


def measure_extent(config: AnyConfig, workload: Workload) -> Extent:
    """Tokens and slots of a workload. Raises `ConfigError` when the model cannot do it or the context is too short."""
    if isinstance(config, VisionConfig):
        require(workload.training is None, "a vision tower on its own is estimated for inference only")
        return Extent(workload.batch, 0, workload.batch, workload.frames, 0, 0, 0, 0)
    tiles = clips = image_tokens = video_tokens = 0
    if isinstance(config, ModelConfig):
        require(workload.videos == 0 or config.video_token_id is not None, f"{config.title} takes images only")
        tiles, image_tokens = _images(config, workload)
        clips = workload.videos
        video_tokens = clips * config.clip_tokens(workload.frames)
        frames_known = config.video_tower.temporal_frames
        require(
            not clips or not config.video_tower.temporal_attention or workload.frames <= frames_known,
            f"this model's temporal attention knows {frames_known} frames, not {workload.frames}",
        )
    visual = image_tokens + video_tokens
    text = workload.prompt_tokens
    if workload.context is not None:
        text = workload.context - visual - workload.new_tokens
        require(text >= 0, f"a context of {workload.context} cannot hold {visual} visual and {workload.new_tokens} new")
    in_prompt = workload.new_tokens if workload.training else 0  # in training the answer is part of the input
    length = text + visual + in_prompt
    require(length > 0, "the prompt is empty")
    return Extent(
        batch=workload.batch,
        tiles=workload.batch * tiles,
        clips=workload.batch * clips,
        frames=workload.frames,
        image_tokens=workload.batch * image_tokens,
        video_tokens=workload.batch * video_tokens,
        length=length,
        capacity=length + (0 if workload.training else workload.new_tokens),
    )


def _images(config: ModelConfig, workload: Workload) -> tuple[int, int]:
    """Tiles and tokens of one row's images."""
    size = workload.image_size or (config.image_tower.image_size,) * 2
    tiling = config.tiling(size)
    tiles = workload.images * (1 if tiling is None else tiling.num_tiles)
    return tiles, workload.images * config.tokens_per_image(size)


def for_model(workload: Workload, config: AnyConfig) -> Workload:
    """The workload with the media that this model takes: no videos where it takes none, one image in their place."""
    if isinstance(config, ModelConfig) and config.video_token_id is not None:
        return workload
    images = max(workload.images, 1) if isinstance(config, ModelConfig) else 0
    return replace(workload, videos=0, images=images)


def run_layers(config: ModelConfig, kind: MediaKind) -> int:
    """Blocks of a tower that run: those up to the deepest hidden state that is asked for."""
    states = config.tower(kind).num_layers + 1
    return max(layer % states for layer in config.select_layers)


def as_training(name: str | None) -> Training | None:
    """A training by name, None for inference. Raises `ConfigError` naming the known ones."""
    if name is None:
        return None
    require_choice("training", name, TRAININGS)
    return cast(Training, name)
