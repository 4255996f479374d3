"""The embedded model: its configuration, and its training from nothing in two stages.

1. *tower*: a vision tower learns from drawn stills what covers each patch and where (`training.tower`).
2. *language*: projector and text tower learn from conversations about clips; both towers start as copies of the
   pretrained one and follow at a tenth of the rate.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn

from filmstrip.checkpoint.defaults import GenerationDefaults
from filmstrip.checkpoint.export import Companions, ExportOptions, save_checkpoint
from filmstrip.config import ModelConfig, SamplingConfig, TextConfig, VisionConfig
from filmstrip.generation import VideoLlavaForGeneration
from filmstrip.media.transform import PixelSpec
from filmstrip.models.vision import VisionTower
from filmstrip.text.tokenizer import Tokenizer
from filmstrip.training.batches import numbered_batches
from filmstrip.training.conversations import ConversationBatches
from filmstrip.training.language import LanguageTraining
from filmstrip.training.loop import Schedule, Trainer
from filmstrip.training.photos import TRAIN_PHOTOS, load_photos
from filmstrip.training.tokenizer import CHAT_TEMPLATE, SPECIAL_TOKENS, train_tokenizer, write_tokenizer
from filmstrip.training.tower import StillBatches, TowerPretraining
from filmstrip.world import corpus

VISION = VisionConfig(hidden_size=128, intermediate_size=512, num_layers=4, num_heads=4, image_size=64, patch_size=16)
TEXT = TextConfig(
    vocab_size=512,
    hidden_size=128,
    intermediate_size=352,
    num_layers=4,
    num_heads=4,
    num_kv_heads=2,
    head_dim=32,
    max_positions=512,
    tie_embeddings=True,
)
TINY = ModelConfig(
    text=TEXT,
    image_tower=VISION,
    video_tower=VISION,
    select_layers=(-1,),  # every layer is trained, so the last one is the best
    image_token_id=SPECIAL_TOKENS.index("<image>"),
    video_token_id=SPECIAL_TOKENS.index("<video>"),
    pad_token_id=SPECIAL_TOKENS.index("<pad>"),
)
STATE_LAYER = 2  # hidden state of the text tower that the auxiliary head reads: the middle one


@dataclass(frozen=True)
class TinyRecipe:
    """Everything that decides the result."""

    seed: int = 0
    tower: Schedule = field(default_factory=lambda: Schedule(learning_rate=1e-3, steps=4000))
    language: Schedule = field(default_factory=lambda: Schedule(learning_rate=1.5e-3, steps=4000))
    stills_per_batch: int = 64
    clips_per_batch: int = 32
    tower_rate_in_language: float = 0.1
    workers: int = 1


def make_tokenizer(directory: Path, seed: int) -> Tokenizer:
    """Train the tokenizer on the world's sentences in prompt form, write it, read it back as users will."""
    rng = np.random.default_rng([seed, 0])
    lines = (f"USER: \n{question} ASSISTANT: {answer}" for question, answer in corpus(rng, 20_000))
    write_tokenizer(train_tokenizer(lines, TEXT.vocab_size), directory, TEXT.max_positions)
    return Tokenizer.from_directory(directory)


def pretrain_tower(recipe: TinyRecipe, directory: Path) -> VisionTower:
    """Stage 1. Continues a run found in `directory`."""
    torch.manual_seed(recipe.seed)
    tower = VisionTower(VISION)
    initialise(tower)
    stage = TowerPretraining(tower, TINY.select_layers)
    trainer = Trainer(stage, recipe.tower, directory)
    make = StillBatches(
        recipe.seed, VISION.image_size, VISION.patch_size, recipe.stills_per_batch, load_photos(TRAIN_PHOTOS)
    )
    trainer.run(numbered_batches(make, trainer.state.step, recipe.workers), stage.loss)
    return tower


def train_language(
    recipe: TinyRecipe,
    tower: VisionTower,
    tokenizer: Tokenizer,
    directory: Path,
    report: Callable[[VideoLlavaForGeneration], None] | None = None,
) -> VideoLlavaForGeneration:
    """Stage 2. Continues a run found in `directory`; `report` sees the model at every checkpoint."""
    torch.manual_seed(recipe.seed)
    model = VideoLlavaForGeneration(TINY)
    initialise(model)
    for copy in (model.image_tower, model.video_tower):
        copy.load_state_dict(tower.state_dict())
    stage = LanguageTraining(model, STATE_LAYER)
    factors = dict.fromkeys(("model.image_tower", "model.video_tower"), recipe.tower_rate_in_language)
    trainer = Trainer(stage, recipe.language, directory, factors)
    make = ConversationBatches(recipe.seed, TINY, tokenizer, recipe.clips_per_batch, load_photos(TRAIN_PHOTOS))
    batches = numbered_batches(make, trainer.state.step, recipe.workers)
    trainer.run(batches, stage.loss, None if report is None else lambda: report(model))
    return model


def export(model: VideoLlavaForGeneration, tokenizer: Tokenizer, directory: Path) -> None:
    """Write the checkpoint that ships, in Hugging Face's format; an earlier one there is replaced."""
    generation = GenerationDefaults(
        bos_id=tokenizer.bos_id,
        eos_ids=(SPECIAL_TOKENS.index("</s>"),),
        pad_id=tokenizer.pad_id,
        sampling=SamplingConfig(max_new_tokens=64),
    )
    companions = Companions(
        files=tokenizer.files,
        pixels=PixelSpec(size=VISION.image_size, crop=VISION.image_size),
        generation=generation,
        chat_template=CHAT_TEMPLATE,
        trained_frames=8,
        preset="transformers",
    )
    save_checkpoint(model, directory, companions, ExportOptions(overwrite=True))


def initialise(module: nn.Module) -> None:
    """Normal weights of deviation 0.02 for tables and 1/sqrt(inputs) for products; biases zero."""
    for name, parameter in module.named_parameters():
        if parameter.ndim >= 2 and "embedding" in name and "patch" not in name:
            nn.init.normal_(parameter, std=0.02)
        elif parameter.ndim >= 2:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
        elif name.endswith("class_embedding"):
            nn.init.normal_(parameter, std=0.02)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
