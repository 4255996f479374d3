"""The cost of a training step, counted by PyTorch while a few small steps run: every product, forward and backward."""

from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from filmstrip.config import ModelConfig
from filmstrip.training.parallel import Parallel
from filmstrip.training.recipe import Recipe, StageRecipe
from filmstrip.training.stages import open_stage
from filmstrip.training.tiny import new_tiny

_SAMPLES = 4  # of each batch that is counted; cost grows in proportion


def step_flops(recipe: Recipe, config: ModelConfig, stage: StageRecipe, tokenizer: Path) -> float:
    """FLOPs of one optimizer step, the mean over a cycle of batches (pictures come every `image_every`-th).

    A product of (a, b) and (b, c) counts 2abc. The count depends on lengths alone, so weights are random and batches
    few; attention runs written out, because PyTorch does not count its fused kernel on the CPU. `tokenizer` is where
    the tokenizer is kept between counts.
    """
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)  # as in training, or counts beside other work would take minutes
    assistant = new_tiny(tokenizer, recipe.seed, config)
    samples = min(_SAMPLES, stage.batch.size)
    small = replace(stage, batch=replace(stage.batch, size=samples, least=None, per_device=None, workers=0))
    opened = open_stage(assistant, recipe, small, recipe.seed, Parallel(), lambda text: None)
    assistant.model.set_attention("eager")
    cycle = stage.world.image_every
    with FlopCounterMode(display=False) as counter:
        for batch in islice(opened.batches(0), cycle):
            loss, _ = opened.task(batch, 0.0)
            loss.backward()
    return counter.get_total_flops() / cycle * stage.batch.size / samples
