"""A stage of a recipe, ready to run: its task, its batches, its settings."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from filmstrip.api import Assistant
from filmstrip.config.checks import require
from filmstrip.media.sample import FrameSelection
from filmstrip.training.adapters import ADAPTER_PATHS, add_adapters
from filmstrip.training.batches import MakeBatch, numbered_batches
from filmstrip.training.conversations import ClipBatches, ConversationBatches
from filmstrip.training.dataset import RecordBatches, ValidationBatches, split_batch
from filmstrip.training.drawn import ClipTraining, WorldTraining
from filmstrip.training.examples import ExampleReader
from filmstrip.training.language import LanguageTraining
from filmstrip.training.log import Rows
from filmstrip.training.loop import LoopSettings
from filmstrip.training.parallel import Parallel
from filmstrip.training.patterns import freeze
from filmstrip.training.photos import TEST_PHOTOS, TRAIN_PHOTOS, load_photos
from filmstrip.training.probes import record_probe, world_probe
from filmstrip.training.recipe import Recipe, StageRecipe, Task
from filmstrip.training.records import read_records
from filmstrip.training.schedule import Schedule
from filmstrip.training.spread import prepare_task
from filmstrip.training.tiny import STATE_LAYER
from filmstrip.training.tower import StillBatches, TowerPretraining
from filmstrip.training.validation import Validation, validate


@dataclass(frozen=True)
class Stage:
    """`batches(number)` iterates from that number on; `finish` is called when the stage is done.

    `num_samples` is None where samples are drawn without end. `adapted` are the layers that got adapters.
    """

    task: nn.Module
    settings: LoopSettings
    batches: Callable[[int], Iterable[Any]]
    num_samples: int | None = None
    validate: Callable[[], Validation] | None = None
    answer: Callable[[], Rows] | None = None
    finish: Callable[[], None] = lambda: None
    adapted: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Shared:
    """The numbers of batches that are drawn for this process, among those of all processes."""

    make: MakeBatch
    share: int
    num_shares: int

    def __call__(self, number: int) -> Any:
        return self.make(number * self.num_shares + self.share)


def open_stage(
    assistant: Assistant,
    recipe: Recipe,
    stage: StageRecipe,
    seed: int,
    parallel: Parallel,
    note: Callable[[str], None],
    before: nn.Module | None = None,
) -> Stage:
    """Build what a stage runs. Raises `FilmstripError`, one line, for whatever cannot be done.

    `before` is the task of the stage before: heads on what moves go on with what they have learnt there.
    """
    torch.manual_seed(seed)
    open_task = _OPENERS[stage.task]
    opened = open_task(assistant, recipe, stage, parallel)
    if isinstance(opened.task, WorldTraining) and isinstance(before, ClipTraining):
        opened.task.heads.load_state_dict(before.heads.state_dict())
    adapted: tuple[str, ...] = ()
    train = stage.train
    if stage.lora is not None:
        adapted = add_adapters(assistant.model, stage.lora)
        train = (*(train or ()), ADAPTER_PATHS)
    elif train is None:
        train = ("*",)
    freeze(opened.task, train, stage.freeze)
    prepare_task(opened.task, assistant.model, recipe, parallel)
    passes, _ = split_batch(stage.batch, parallel.data_size)
    settings = replace(
        opened.settings,
        optimizer=stage.optimizer,
        checkpoints=recipe.checkpoints,
        micro_batches=passes,
        seed=seed,
        autocast=torch.bfloat16 if recipe.precision == "bfloat16" else None,
        ema=stage.ema,
        samples_every=recipe.samples.every_steps,
    )
    answer = opened.answer
    if parallel.mesh is not None and answer is not None and settings.samples_every is not None:
        note("sample answers are not written when several processes share the model")
        answer = None
    return replace(opened, settings=settings, adapted=adapted, answer=answer)


def _open_stills(assistant: Assistant, recipe: Recipe, stage: StageRecipe, parallel: Parallel) -> Stage:
    """Pretraining of the image tower; the video tower starts as its copy."""
    model, config = assistant.model, assistant.config
    tower = config.image_tower
    task = TowerPretraining(model.image_tower, config.select_layers)
    _, per_pass = split_batch(stage.batch, parallel.data_size)
    make = StillBatches(recipe.seed, tower.image_size, tower.patch_size, per_pass, _photos(stage))

    def finish() -> None:
        if model.video_tower is not model.image_tower:
            model.video_tower.load_state_dict(model.image_tower.state_dict())

    return Stage(task, _settings(stage), _numbered(make, stage, parallel), finish=finish)


def _open_clips(assistant: Assistant, recipe: Recipe, stage: StageRecipe, parallel: Parallel) -> Stage:
    task = ClipTraining(assistant.model, STATE_LAYER)
    _, per_pass = split_batch(stage.batch, parallel.data_size)
    make = ClipBatches(recipe.seed, assistant.config, per_pass, _photos(stage))
    return Stage(task, _settings(stage), _numbered(make, stage, parallel))


def _open_world(assistant: Assistant, recipe: Recipe, stage: StageRecipe, parallel: Parallel) -> Stage:
    world = stage.world
    task = WorldTraining(assistant.model, STATE_LAYER, world.motion_weight)
    _, per_pass = split_batch(stage.batch, parallel.data_size)
    make = ConversationBatches(
        recipe.seed,
        assistant.config,
        assistant.processor.tokenizer,
        per_pass,
        _photos(stage),
        image_every=world.image_every,
        questions=world.questions,
        dialogues=world.dialogues,
        mixed_every=world.mixed_every,
    )
    answer = partial(world_probe, assistant, _photos(stage, TEST_PHOTOS), recipe.samples, recipe.precision)
    return Stage(task, _settings(stage), _numbered(make, stage, parallel), answer=answer)


def _open_conversations(assistant: Assistant, recipe: Recipe, stage: StageRecipe, parallel: Parallel) -> Stage:
    data, processor = stage.data, assistant.processor
    if data.prompt is not None:
        processor.preset = replace(processor.preset, prompt=data.prompt)
    selection: FrameSelection = assistant.selection
    if data.num_frames is not None:
        selection = replace(selection, num_frames=data.num_frames)
    require(bool(assistant.model.eos_token_ids), "the checkpoint names no end-of-sequence token to train on")
    reader = ExampleReader(processor, selection, assistant.model.eos_token_ids, data.max_tokens)
    records = read_records(data.files, data.media_root)
    batches = RecordBatches(records, reader, stage.batch, recipe.seed, parallel.data_rank, parallel.data_size)
    task = LanguageTraining(assistant.model)
    held_out = read_records(data.validation, data.media_root) if data.validation else []
    held_out_loss = None
    if held_out:
        held_out_loss = partial(_validate, task, ValidationBatches(batches, held_out), parallel)
    answer = partial(record_probe, assistant, reader, held_out or records, recipe.samples, recipe.precision)
    settings = _settings(stage, batches.order.steps_per_epoch)
    return Stage(
        task,
        settings,
        lambda start: numbered_batches(batches, start, stage.batch.workers),
        num_samples=len(records),
        validate=held_out_loss,
        answer=answer,
    )


def _validate(task: nn.Module, batches: ValidationBatches, parallel: Parallel) -> Validation:
    return validate(task, numbered_batches(batches, 0, 0, len(batches)), parallel)


def _settings(stage: StageRecipe, steps_per_epoch: int | None = None) -> LoopSettings:
    recipe = stage.schedule
    steps = recipe.steps
    if recipe.epochs is not None and steps_per_epoch is not None:
        whole = max(1, round(recipe.epochs * steps_per_epoch))
        steps = whole if steps is None else min(steps, whole)
    return LoopSettings(Schedule(steps, recipe.minutes, recipe.warmup, recipe.floor))


def _numbered(make: MakeBatch, stage: StageRecipe, parallel: Parallel) -> Callable[[int], Iterable[Any]]:
    shared = _Shared(make, parallel.data_rank, parallel.data_size)
    return lambda start: numbered_batches(shared, start, stage.batch.workers)


def _photos(stage: StageRecipe, names: tuple[str, ...] = TRAIN_PHOTOS) -> list[Any]:
    return load_photos(names) if stage.world.photos else []


_OPENERS: dict[Task, Callable[[Assistant, Recipe, StageRecipe, Parallel], Stage]] = {
    "stills": _open_stills,
    "clips": _open_clips,
    "world": _open_world,
    "conversations": _open_conversations,
}
