"""The embedded model from nothing: its configuration, its tokenizer, and random weights to start from.

The recipe `tiny` trains it in three stages: a vision tower learns from drawn stills what covers each patch and where
(`training.tower`), the lower half of the text tower learns from clips, without words, what moves (`training.drawn`),
and then projector and text tower learn from conversations about clips and pictures.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from filmstrip.api import Assistant
from filmstrip.api.answer import Origin
from filmstrip.checkpoint.atomic import atomic_directory
from filmstrip.checkpoint.describe import describe
from filmstrip.config import ModelConfig, SamplingConfig, TextConfig, VisionConfig, get_preset
from filmstrip.generation import VideoLlavaForGeneration
from filmstrip.inputs.processor import Processor
from filmstrip.media.sample import FrameSelection
from filmstrip.media.transform import PixelSpec
from filmstrip.text.tokenizer import Tokenizer
from filmstrip.training.patterns import matches_any
from filmstrip.training.tokenizer import CHAT_TEMPLATE, SPECIAL_TOKENS, train_tokenizer, write_tokenizer
from filmstrip.world import CLIPS, STILLS, corpus

VISION = VisionConfig(hidden_size=128, intermediate_size=512, num_layers=4, num_heads=4, image_size=64, patch_size=16)
TEXT = TextConfig(
    vocab_size=640,
    hidden_size=128,
    intermediate_size=352,
    num_layers=6,
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
STATE_LAYER = 3  # hidden state of the text tower that the auxiliary heads read: the middle one
NUM_FRAMES = 8


def new_tiny(directory: Path, seed: int, config: ModelConfig = TINY) -> Assistant:
    """The untrained model with all that belongs to it; its tokenizer is trained first and kept in `directory`.

    `config` may be another than the embedded model's in how frames are aggregated.
    """
    tokenizer = make_tokenizer(directory, seed)
    torch.manual_seed(seed)
    model = VideoLlavaForGeneration(config)
    initialise(model)
    model.eos_token_ids = (SPECIAL_TOKENS.index("</s>"),)
    preset = get_preset("transformers")
    pixels = PixelSpec(size=VISION.image_size, crop=VISION.image_size)
    processor = Processor(tokenizer, pixels, preset, config, CHAT_TEMPLATE, NUM_FRAMES)
    count = sum(parameter.numel() for parameter in model.parameters())
    origin = Origin(
        model="tiny",
        description=describe(config, "hub layout (A)", "float32", count),
        layout="A",
        weights_hash="",
        preset=preset,
        temporal_attention=False,
        dtype="float32",
        device="cpu",
    )
    selection = FrameSelection(sampler=preset.frame_sampler, num_frames=NUM_FRAMES)
    return Assistant(model, processor, origin, selection, SamplingConfig(max_new_tokens=64))


def make_tokenizer(directory: Path, seed: int) -> Tokenizer:
    """Train the tokenizer on the world's sentences in prompt form, write it, read it back as users will.

    One that is there already is kept: a run that goes on must not change its words.
    """
    if (directory / "tokenizer.json").is_file():
        return Tokenizer.from_directory(directory)
    rng = np.random.default_rng([seed, 0])
    clip = replace(CLIPS, num_photos=2)  # with the camera, which asks for photographs; nothing is drawn
    lines = (f"USER: \n{question} ASSISTANT: {answer}" for question, answer in corpus(rng, 20_000, clip, STILLS))
    with atomic_directory(directory) as partial:
        write_tokenizer(train_tokenizer(lines, TEXT.vocab_size), partial, TEXT.max_positions)
    return Tokenizer.from_directory(directory)


def initialise(module: nn.Module, paths: Sequence[str] = ("*",)) -> None:
    """Normal weights of deviation 0.02 for tables and 1/sqrt(inputs) for products; norms one, biases zero.

    `paths` choose parts of the module (`patterns`).
    """
    for name, parameter in module.named_parameters():
        if not matches_any(name, paths):
            continue
        if (parameter.ndim >= 2 and "embedding" in name and "patch" not in name) or name.endswith("class_embedding"):
            nn.init.normal_(parameter, std=0.02)
        elif parameter.ndim >= 2:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
        else:
            nn.init.ones_(parameter)
