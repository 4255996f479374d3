"""Conversations about drawn clips and pictures as padded batches with labels on the assistant's words only."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch

from filmstrip.config import MediaKind, ModelConfig
from filmstrip.text.encode import tokenize
from filmstrip.text.prompt import Turn, render
from filmstrip.text.tokenizer import Tokenizer
from filmstrip.training.batches import IGNORE, ConversationBatch, frames_to_pixels, pad_right
from filmstrip.training.tower import NUM_COLOURS
from filmstrip.world import (
    COLOUR_NAMES,
    MOTIONS,
    Question,
    Scene,
    SceneOptions,
    ask_about,
    augment_clip,
    draw_clip,
    sample_clip,
    sample_still,
)

ABSENT, GONE, NEW, FIRST_MOTION = 0, 1, 2, 3
NUM_STATES = FIRST_MOTION + len(MOTIONS)


class ConversationBatches:
    """`batch(number)` draws one batch; every `image_every`-th is of pictures, the others of videos."""

    def __init__(
        self,
        seed: int,
        config: ModelConfig,
        tokenizer: Tokenizer,
        batch_size: int,
        photos: Sequence[np.ndarray] = (),
        image_every: int = 6,
        questions: int = 6,
    ) -> None:
        self.seed, self.config, self.tokenizer, self.batch_size = seed, config, tokenizer, batch_size
        self.photos, self.image_every, self.questions = list(photos), image_every, questions
        self.clip = SceneOptions(num_photos=len(self.photos))
        self.still = SceneOptions(num_frames=1, max_shapes=4, num_photos=len(self.photos))

    def __call__(self, number: int) -> ConversationBatch:
        """Draw batch `number`."""
        rng = np.random.default_rng([self.seed, 2, number])
        kind: MediaKind = "image" if number % self.image_every == 0 else "video"
        scenes, frames, conversations = [], [], []
        for _ in range(self.batch_size):
            scene = sample_still(rng, self.still) if kind == "image" else sample_clip(rng, "train", self.clip)
            scenes.append(scene)
            frames.append(augment_clip(draw_clip(scene, self.config.tower(kind).image_size, self.photos), rng))
            questions = separate_description(ask_about(scene, rng, self.questions), rng)
            conversations.append(self._tokens(questions, kind))
        pixels = frames_to_pixels(np.stack(frames))
        input_ids, labels = pad_right(conversations, self.config.pad_token_id)
        batch = ConversationBatch(
            input_ids,
            labels,
            num_samples=len(conversations),
            num_tokens=sum(len(ids) for ids, _ in conversations),
        )
        if kind == "image":
            return replace(batch, images=pixels[:, 0])
        states = torch.from_numpy(np.stack([colour_states(scene) for scene in scenes]))
        return replace(batch, videos=pixels, colour_state=states)

    def _tokens(self, questions: Sequence[Question], kind: MediaKind) -> tuple[np.ndarray, np.ndarray]:
        frames = self.clip.num_frames if kind == "video" else 1
        return conversation_tokens(questions, kind, frames, self.config, self.tokenizer)


def separate_description(questions: Sequence[Question], rng: np.random.Generator) -> list[Question]:
    """Put a description last, or, three times in ten, alone: once given, it answers the other questions."""
    described = [question for question in questions if question.family == "describe"]
    others = [question for question in questions if question.family != "describe"]
    return described if described and rng.random() < 0.3 else others + described


def conversation_tokens(
    questions: Sequence[Question], kind: MediaKind, num_frames: int, config: ModelConfig, tokenizer: Tokenizer
) -> tuple[np.ndarray, np.ndarray]:
    """Ids with placeholders expanded, and labels, of one conversation in the embedded model's prompt style."""
    turns = []
    for index, question in enumerate(questions):
        turns += [Turn("user", question.text, (kind,) if index == 0 else ()), Turn("assistant", question.answer)]
    media_ids = config.placeholder_ids
    rendered = render(turns, "vicuna-v1-no-system", add_generation_prompt=False)
    labelled = tokenize(rendered, tokenizer, media_ids)
    ids = np.array(labelled.ids)
    answers = np.array([label.startswith("assistant") for label in labelled.labels])
    labels = np.where(answers, ids, IGNORE)
    visual = config.clip_tokens(num_frames) if kind == "video" else config.tokens_per_frame("image")
    repeats = np.where(ids == media_ids[kind], visual, 1)
    return np.repeat(ids, repeats), np.repeat(labels, repeats)


def colour_states(scene: Scene) -> np.ndarray:
    """What each colour's shape is doing in each frame, int64 (F, colours); IGNORE where two shapes share a colour."""
    states = np.full((scene.num_frames, NUM_COLOURS), ABSENT)
    for shape in scene.shapes:
        colour = COLOUR_NAMES.index(shape.colour)
        states[shape.first_frame, colour] = NEW
        states[shape.first_frame + 1 : shape.end_frame, colour] = FIRST_MOTION + MOTIONS.index(shape.motion)
        states[shape.end_frame :, colour] = GONE
    for first, second in pairwise(sorted(shape.colour for shape in scene.shapes)):
        if first == second:
            states[:, COLOUR_NAMES.index(first)] = IGNORE
    return states
