# ruff: noqa: RUF009 - `setting`, `section` and `required` are `dataclasses.field` with the meaning of the field
"""What a training run is: one frozen dataclass, read from a YAML file (`recipe_file`).

A recipe has a model to start from and one or more stages, which train it one after another.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, Literal

from filmstrip.config.aggregation import AggregationName, AggregationSettings
from filmstrip.config.checks import require, require_positive
from filmstrip.config.preset import ImageTransform, PromptStyle
from filmstrip.training.settings import required, section, setting

Task = Literal["stills", "clips", "world", "conversations"]
Precision = Literal["float32", "bfloat16"]
Grouping = Literal["none", "length", "modality-length"]
_TAKEN = {"checkpoint", "adapter", "tokenizer"}  # what a run writes beside the directories of its stages


@dataclass(frozen=True, kw_only=True)
class ModelRecipe:
    """What training starts from: `architecture` with random weights, or a `checkpoint`."""

    architecture: Literal["tiny"] | None = setting(None, "build this architecture with random weights")
    checkpoint: str | None = setting(None, "a checkpoint directory or hub id")
    preset: str | None = setting(None, "frames, pixels and prompt: original or transformers (the checkpoint's own)")
    image_transform: ImageTransform | None = setting(None, "how a checkpoint's pixels are made (the preset's)")
    reset: tuple[str, ...] = setting((), "paths of modules whose weights are drawn anew (a new projector)")
    aggregation: AggregationName = setting("keep-all", "architecture: how tokens of frames become those of a clip")
    aggregation_settings: AggregationSettings = section(AggregationSettings, "of the aggregations that have any")
    video_class_token: bool = setting(True, "architecture: frames of videos keep their class tokens")
    towers: str | None = setting(None, "architecture: a checkpoint of it whose trained vision towers to begin with")

    def __post_init__(self) -> None:
        require((self.architecture is None) != (self.checkpoint is None), "give either architecture or checkpoint")
        require(
            self.architecture is None or (self.preset is None and self.image_transform is None),
            "preset and image_transform go with checkpoint; an architecture is trained with its own frames, pixels and "
            "prompt",
        )
        if self.checkpoint is not None:
            own = (self.aggregation, self.aggregation_settings, self.video_class_token, self.towers)
            require(
                own == ("keep-all", AggregationSettings(), True, None),
                "aggregation, aggregation_settings, video_class_token and towers go with architecture; a checkpoint "
                "has its own",
            )


@dataclass(frozen=True, kw_only=True)
class WorldRecipe:
    """Clips and pictures drawn by `filmstrip.world`: `photos` for the tasks `stills`, `clips` and `world`, the rest for
    `world`.
    """

    photos: bool = setting(True, "photographs of scikit-image among the backgrounds")
    image_every: int = setting(6, "every so-many-th batch is of pictures, the others are of clips (task world)")
    mixed_every: int = setting(
        12, "every so-many-th batch has a picture and a clip in each prompt (task world); 0: none"
    )
    questions: int = setting(8, "questions about each clip or picture (task world)")
    dialogues: float = setting(
        0.25, "share of clips whose questions see those before them; others see the clip alone (task world)"
    )
    motion_weight: float = setting(0.5, "weight at the start of the auxiliary losses on what moves (task world)")

    def __post_init__(self) -> None:
        for name in ("image_every", "questions"):
            require_positive(name, getattr(self, name))
        require(self.mixed_every == 0 or self.mixed_every > 1, "mixed_every is 0 or more than 1")
        require(0 <= self.dialogues <= 1, f"dialogues is a share, 0 to 1, not {self.dialogues}")
        require(self.motion_weight >= 0, f"motion_weight must not be negative, is {self.motion_weight}")


@dataclass(frozen=True, kw_only=True)
class DataRecipe:
    """Conversations in LLaVA's JSON format, for the task `conversations`."""

    files: tuple[str, ...] = setting((), "JSON files, each a list of records")
    media_root: str | None = setting(None, "directory that the records' images and videos lie in (each file's own)")
    validation: tuple[str, ...] = setting(
        (), "JSON files whose mean loss chooses the best checkpoint (see checkpoints.result)"
    )
    prompt: PromptStyle | None = setting(None, "how conversations are written (the preset's)")
    num_frames: int | None = setting(None, "frames taken from each video (as the checkpoint was trained)")
    max_tokens: int = setting(3072, "a longer sample, visual tokens included, is left out and reported")

    def __post_init__(self) -> None:
        require_positive("max_tokens", self.max_tokens)
        require(self.num_frames is None or self.num_frames > 0, "num_frames must be at least 1")


@dataclass(frozen=True, kw_only=True)
class BatchRecipe:
    """How many samples an optimizer step sees and how they are put together."""

    size: int = setting(32, "samples of one optimizer step, over all devices")
    per_device: int | None = setting(None, "samples of one forward pass; the rest is accumulated (all of them)")
    least: int | None = setting(
        None, "`--minutes` brings size down to no fewer, as it does usual_minutes: a short run needs steps (size)"
    )
    group: Grouping = setting("none", "samples of one step have similar lengths, or also the same kinds of media")
    pack: bool = setting(False, "put samples behind one another in rows instead of padding each to the longest")
    workers: int = setting(1, "processes that read or draw samples; 0 does it in between")

    def __post_init__(self) -> None:
        require_positive("size", self.size)
        require(self.workers >= 0, f"workers must be 0 or more, not {self.workers}")
        per_device = self.size if self.per_device is None else self.per_device
        require(
            per_device > 0 and self.size % per_device == 0,
            f"size ({self.size}) must be a multiple of per_device ({per_device})",
        )
        require(self.least is None or 0 < self.least <= self.size, f"least lies between 1 and size, not {self.least}")
        require(self.least is None or self.per_device is None, "give per_device or least, not both")


@dataclass(frozen=True, kw_only=True)
class OptimizerRecipe:
    """AdamW (Loshchilov and Hutter 2019) or, for matrices that `muon` names, Muon (Jordan et al. 2024); clipping."""

    learning_rate: float = setting(1e-3, "highest learning rate")
    rates: dict[str, float] = section(
        dict, "other highest rates, by path of module or parameter; the first match counts"
    )
    muon: tuple[str, ...] = setting((), "paths whose matrices Muon moves; meant for hidden layers, on one process")
    weight_decay: float = setting(0.0, "decay of matrices; vectors (norms, biases) are never decayed")
    betas: tuple[float, float] = setting((0.9, 0.999), "decay of the two running means")
    eps: float = setting(1e-8, "added to the denominator")
    clip_norm: float = setting(1.0, "gradients are scaled down to this norm over all parameters; 0 never")

    def __post_init__(self) -> None:
        for name, rate in {"learning_rate": self.learning_rate, **self.rates}.items():
            require_positive(f"the rate of {name}" if name in self.rates else name, rate)
        for beta in self.betas:
            require(0 <= beta < 1, f"betas must lie between 0 and 1, not {beta}")
        require(self.clip_norm >= 0 and self.weight_decay >= 0, "clip_norm and weight_decay cannot be below 0")


@dataclass(frozen=True, kw_only=True)
class ScheduleRecipe:
    """How long, and how the rate rises and falls: linear warm-up, then half a cosine."""

    steps: int | None = setting(None, "optimizer steps")
    epochs: float | None = setting(None, "passes over the data, instead of steps")
    minutes: float | None = setting(None, "wall time; the run ends at whichever comes first")
    warmup: float = setting(0.03, "share of the run over which the rate rises from 0")
    floor: float = setting(0.0, "share of the highest rate that is left at the end")
    usual_minutes: float = setting(
        1.0, "about what this stage takes if nothing limits it; `--minutes` is divided in proportion to it"
    )
    least_minutes: float | None = setting(
        None, "`--minutes` gives this stage as many, as far as an even division among the stages goes"
    )
    skip_below: float | None = setting(None, "this stage is left out where `--minutes` is less (never)")

    def __post_init__(self) -> None:
        lengths = {"steps": self.steps, "epochs": self.epochs, "minutes": self.minutes}
        limits = {name: getattr(self, name) for name in ("usual_minutes", "least_minutes", "skip_below")}
        for name, value in {**lengths, **limits}.items():
            if value is not None:
                require_positive(name, value)
        require(any(value is not None for value in lengths.values()), "give steps, epochs or minutes")
        require(0 <= self.warmup < 1 and 0 <= self.floor <= 1, "warmup and floor are shares, from 0 to 1")


@dataclass(frozen=True, kw_only=True)
class LoraRecipe:
    """Low-rank adapters (Hu et al. 2021) through `peft`."""

    targets: tuple[str, ...] = setting(
        ("text_tower.blocks.*.attention.*_proj", "text_tower.blocks.*.mlp.*_proj"), "paths of linear layers to adapt"
    )
    rank: int = setting(128, "rank of the update")
    alpha: float = setting(256.0, "the update is scaled by alpha / rank")
    dropout: float = setting(0.05, "dropout in front of the adapters")

    def __post_init__(self) -> None:
        require_positive("rank", self.rank)
        require(0 <= self.dropout < 1, f"dropout must lie between 0 and 1, not {self.dropout}")


@dataclass(frozen=True, kw_only=True)
class StageRecipe:
    """One run of the optimizer."""

    name: str = required("its directory under the output")
    task: Task = required(
        "stills: the tower on drawn pictures; clips: the text tower on what moves; world: drawn conversations; "
        "conversations: files of them"
    )
    train: tuple[str, ...] | None = setting(
        None, "paths of modules or parameters that learn; * stands for anything (everything; with lora nothing else)"
    )
    freeze: tuple[str, ...] = setting((), "paths that do not, among those")
    lora: LoraRecipe | None = setting(
        None, "train low-rank adapters on these layers; `train` then says what else learns"
    )
    ema: float | None = setting(None, "keep a running mean of the weights with this decay and use it in the end")
    world: WorldRecipe = section(WorldRecipe, "what is drawn")
    data: DataRecipe = section(DataRecipe, "which files are read")
    batch: BatchRecipe = section(BatchRecipe, "how samples become batches")
    optimizer: OptimizerRecipe = section(OptimizerRecipe, "how weights move")
    schedule: ScheduleRecipe = required("how long and how fast")

    def __post_init__(self) -> None:
        plain = self.name.replace("-", "").replace("_", "").isalnum() and self.name.isascii()
        require(plain, f"a stage's name has letters, digits, - and _ alone, not {self.name!r}")
        require(self.name not in _TAKEN, f"a stage cannot be named {self.name!r}: a run writes something else there")
        require(self.ema is None or 0 < self.ema < 1, f"ema must lie between 0 and 1, not {self.ema}")
        require(self.task != "conversations" or bool(self.data.files), "the task conversations needs data.files")
        require(
            self.task == "conversations" or self.schedule.epochs is None,
            f"the task {self.task!r} draws new samples without end: give steps or minutes, not epochs",
        )
        idle = next(self._without_effect(), None)
        require(idle is None, f"{idle} does nothing in a stage of the task {self.task!r}")

    def _without_effect(self) -> Iterator[str]:
        """Settings that this stage's task does not read and that are not as they are by default."""
        if self.task != "conversations":
            yield from (f"data.{name}" for name in _changed(self.data))
            yield from (f"batch.{name}" for name in ("group", "pack") if name in _changed(self.batch))
        if self.task != "world":
            drawn = self.task != "conversations"
            yield from (f"world.{name}" for name in _changed(self.world) if not (drawn and name == "photos"))


@dataclass(frozen=True, kw_only=True)
class CheckpointRecipe:
    """When the state of the run is saved and how much of it is kept."""

    every_steps: int | None = setting(None, "optimizer steps between two checkpoints")
    every_minutes: float | None = setting(5.0, "minutes between two checkpoints")
    keep: int = setting(2, "the last so many are kept, and the best")
    result: Literal["best", "last"] = setting(
        "best",
        "what the result is made of: where there is data.validation the one with the lowest loss on it, or the last",
    )

    def __post_init__(self) -> None:
        require_positive("keep", self.keep)
        for name in ("every_steps", "every_minutes"):
            value = getattr(self, name)
            require(value is None or value >= 0, f"{name} cannot be below 0")


@dataclass(frozen=True, kw_only=True)
class SampleRecipe:
    """Answers written down while training goes on, so that one sees what the model has learnt."""

    every_steps: int | None = setting(None, "optimizer steps between two sets of answers (never)")
    count: int = setting(4, "questions, always the same")
    max_new_tokens: int = setting(48, "longest answer in tokens")

    def __post_init__(self) -> None:
        if self.every_steps is not None:
            require_positive("every_steps", self.every_steps)
        require_positive("count", self.count)
        require_positive("max_new_tokens", self.max_new_tokens)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides the result of a training run."""

    name: str = required("its directory under runs/, unless --output says otherwise")
    model: ModelRecipe = required("what training starts from")
    stages: tuple[StageRecipe, ...] = required("what is done to it, in order")
    seed: int = setting(0, "decides new weights, the order of samples, everything drawn, and dropout")
    precision: Precision = setting("float32", "bfloat16: autocast; weights that learn stay in float32")
    activation_checkpointing: bool = setting(False, "compute activations twice instead of keeping them")
    compile: bool = setting(False, "torch.compile the blocks of all towers")
    tensor_parallel: int = setting(1, "devices that share each matrix of the text tower; the others share the samples")
    threads: int | None = setting(None, "CPU threads of PyTorch (its own choice)")
    checkpoints: CheckpointRecipe = section(CheckpointRecipe, "what is saved when")
    samples: SampleRecipe = section(SampleRecipe, "answers written down on the way")

    def __post_init__(self) -> None:
        require(len(self.stages) > 0, "stages: at least one is needed")
        names = [stage.name for stage in self.stages]
        require(len(set(names)) == len(names), f"two stages share a name: {', '.join(names)}")
        require(0 <= self.seed < 2**31, f"the seed must be from 0 to 2147483647, not {self.seed}")
        require_positive("tensor_parallel", self.tensor_parallel)
        require(self.threads is None or self.threads > 0, "threads must be at least 1")
        lora = [stage.name for stage in self.stages if stage.lora is not None]
        require(not lora or lora == names[-1:], "only the last stage can train adapters (lora)")


def _changed(section: Any) -> list[str]:
    """Names of the settings of a section that are not as they are by default."""
    default = type(section)()
    return [item.name for item in fields(section) if getattr(section, item.name) != getattr(default, item.name)]
