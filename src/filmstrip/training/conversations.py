"""Conversations about drawn clips and pictures as padded batches with labels on the assistant's words only."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from filmstrip.config import MediaKind, ModelConfig
from filmstrip.shapes import Int, Tensor
from filmstrip.text.encode import tokenize
from filmstrip.text.prompt import Turn, render
from filmstrip.text.tokenizer import Tokenizer
from filmstrip.training.batches import IGNORE, ConversationBatch, frames_to_pixels, pad_right
from filmstrip.training.drawn import ClipBatch
from filmstrip.training.mentions import mention_labels, naming_tokens
from filmstrip.training.motion import motion_labels
from filmstrip.world import (
    CLIPS,
    GROUPS,
    OVER_TIME,
    STILLS,
    Question,
    Scene,
    ask_about,
    augment_clip,
    draw_clip,
    sample_clip,
    sample_still,
    training_rng,
)

_DESCRIBED = 0.4  # of the conversations have a description, if there is one to give
_DESCRIBED_ALONE = 0.1
_COMPARING = ("position", "size")
_LOOKING = tuple(family for family in GROUPS["still"] if family not in _COMPARING)
_MAX_WORDS = 160  # tokens of a conversation beside those of its clip


class ConversationBatches:
    """`batch(number)` draws one batch; every `image_every`-th is of pictures, the others of videos. In every
    `mixed_every`-th (0: none) each row has both, and its questions say which they are about.

    `dialogues` is the share of rows in which questions follow one another as in a conversation. In the others each
    question sees the clip alone: answers to earlier ones tell so much of later ones (`the red star` of the colour of
    the star, what comes first of what comes last) that a model learns to read those instead of looking.
    """

    def __init__(
        self,
        seed: int,
        config: ModelConfig,
        tokenizer: Tokenizer,
        batch_size: int,
        photos: Sequence[np.ndarray] = (),
        *,
        image_every: int = 6,
        questions: int = 6,
        dialogues: float = 0.25,
        mixed_every: int = 0,
    ) -> None:
        self.seed, self.config, self.tokenizer, self.batch_size = seed, config, tokenizer, batch_size
        self.photos, self.image_every, self.questions = list(photos), image_every, questions
        self.dialogues, self.mixed_every = dialogues, mixed_every
        self.words = naming_tokens(tokenizer)
        self.clip = replace(CLIPS, num_photos=len(self.photos))
        self.still = replace(STILLS, num_photos=len(self.photos))

    def __call__(self, number: int) -> ConversationBatch:
        """Draw batch `number`."""
        rng = training_rng(2, number, self.seed)
        media = self._media(number)
        scenes: dict[MediaKind, list[Scene]] = {kind: [] for kind in media}
        frames: dict[MediaKind, list[np.ndarray]] = {kind: [] for kind in media}
        rows, branches = [], []
        for _ in range(self.batch_size):
            questions = []
            for kind in media:
                scene = sample_still(rng, self.still) if kind == "image" else sample_clip(rng, "train", self.clip)
                drawn = draw_clip(scene, self.config.tower(kind).image_size, self.photos)
                scenes[kind].append(scene)
                frames[kind].append(augment_clip(drawn, rng))
                asked = draw_questions(scene, rng, self.questions)
                half = max(1, self.questions // 2)  # of the questions about each of two media
                questions += asked if len(media) == 1 else [said_of(scene, one) for one in asked[:half]]
            ids, answers, branch = self._tokens(questions, media, dialogue=rng.random() < self.dialogues)
            rows.append((ids, answers))
            branches.append(branch)
        pixels = {kind: frames_to_pixels(np.stack(drawn)) for kind, drawn in frames.items()}
        input_ids, labels = pad_right(rows, self.config.pad_token_id)
        batch = ConversationBatch(
            input_ids,
            labels,
            branches=_pad_branches(branches, input_ids.shape[1]),
            num_samples=len(rows),
            num_tokens=sum(len(ids) for ids, _ in rows),
        )
        if len(media) == 1:
            batch = replace(batch, mentions=mention_labels(scenes[media[0]], input_ids, labels, self.words))
        if "image" in media:
            batch = replace(batch, images=pixels["image"][:, 0])
        if "video" in media:
            tower = self.config.video_tower
            motion = motion_labels(scenes["video"], tower.patch_size, tower.image_size)
            batch = replace(batch, videos=pixels["video"], motion=motion)
        return batch

    def _media(self, number: int) -> tuple[MediaKind, ...]:
        """What each row of batch `number` has; the prompt's style decides which stands first."""
        if self.mixed_every and number % self.mixed_every == 1:
            return ("image", "video")
        return ("image",) if number % self.image_every == 0 else ("video",)

    def _tokens(
        self, questions: Sequence[Question], media: Sequence[MediaKind], *, dialogue: bool
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ids, labels and branches of as many of the questions as `_MAX_WORDS` tokens hold, so that rows are of similar
        length.
        """
        visual = sum(_num_tokens(kind, self.config, self.clip.num_frames) for kind in media)
        make = dialogue_tokens if dialogue else branched_tokens
        while True:
            row = make(questions, media, self.clip.num_frames, self.config, self.tokenizer)
            if len(row[0]) <= visual + _MAX_WORDS or len(questions) == 1:
                return row
            questions = questions[1:]


class ClipBatches:
    """`batch(number)` draws clips with the labels of what moves in them."""

    def __init__(self, seed: int, config: ModelConfig, batch_size: int, photos: Sequence[np.ndarray] = ()) -> None:
        self.seed, self.config, self.batch_size, self.photos = seed, config, batch_size, list(photos)
        self.clip = replace(CLIPS, num_photos=len(self.photos))

    def __call__(self, number: int) -> ClipBatch:
        """Draw batch `number`."""
        rng = training_rng(3, number, self.seed)
        tower = self.config.video_tower
        scenes = [sample_clip(rng, "train", self.clip) for _ in range(self.batch_size)]
        frames = [augment_clip(draw_clip(scene, tower.image_size, self.photos), rng) for scene in scenes]
        tokens = len(scenes) * self.config.clip_tokens(self.clip.num_frames)
        labels = motion_labels(scenes, tower.patch_size, tower.image_size)
        return ClipBatch(frames_to_pixels(np.stack(frames)), labels, tokens)


def draw_questions(scene: Scene, rng: np.random.Generator, count: int) -> list[Question]:
    """Up to `count` questions, at least a third of them about what stands still in any frame, in random order.

    The others are about what takes several frames to see, as far as there is so much to ask: it is harder to learn. Of
    those about a single frame a third compare two shapes, which is harder than to look one up.
    """
    asked = ask_about(scene, rng, count - count // 3, OVER_TIME)
    asked += ask_about(scene, rng, -(-(count - len(asked)) // 3), _COMPARING)
    asked += ask_about(scene, rng, count - len(asked), _LOOKING)
    described = ask_about(scene, rng, 1, GROUPS["describe"])
    return separate_description([asked[i] for i in rng.permutation(len(asked))] + described, rng)


def said_of(scene: Scene, question: Question) -> Question:
    """The question where there is a picture and a video, saying which it is about."""
    return replace(question, text=f"In the {scene.medium}: {question.text}")


def separate_description(questions: Sequence[Question], rng: np.random.Generator) -> list[Question]:
    """Put a description last, alone, or (mostly) leave it out.

    Once given, it answers the other questions; and it has ten times their words, which the loss would be about.
    """
    described = [question for question in questions if question.family == "describe"]
    others = [question for question in questions if question.family != "describe"]
    draw = rng.random()
    if not others or (described and draw < _DESCRIBED_ALONE):
        return described
    return others + described if draw < _DESCRIBED else others


def conversation_tokens(
    questions: Sequence[Question],
    media: Sequence[MediaKind],
    num_frames: int,
    config: ModelConfig,
    tokenizer: Tokenizer,
) -> tuple[np.ndarray, np.ndarray]:
    """Ids with placeholders expanded, and labels, of one conversation in the embedded model's prompt style.

    `media` are a picture, a clip of `num_frames`, or both.
    """
    turns = []
    for index, question in enumerate(questions):
        turns += [Turn("user", question.text, tuple(media) if index == 0 else ()), Turn("assistant", question.answer)]
    media_ids = config.placeholder_ids
    rendered = render(turns, "vicuna-v1-no-system", add_generation_prompt=False)
    labelled = tokenize(rendered, tokenizer, media_ids)
    ids = np.array(labelled.ids)
    answers = np.array([label.startswith("assistant") for label in labelled.labels])
    labels = np.where(answers, ids, IGNORE)
    repeats = np.ones(len(ids), int)
    for kind in media:
        repeats[ids == media_ids[kind]] = _num_tokens(kind, config, num_frames)
    return np.repeat(ids, repeats), np.repeat(labels, repeats)


def dialogue_tokens(
    questions: Sequence[Question],
    media: Sequence[MediaKind],
    num_frames: int,
    config: ModelConfig,
    tokenizer: Tokenizer,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids, labels and branches of a conversation: all behind the media is one branch."""
    ids, labels = conversation_tokens(questions, media, num_frames, config, tokenizer)
    return ids, labels, np.where(np.arange(len(ids)) < _beginning(ids, config), 0, 1)


def branched_tokens(
    questions: Sequence[Question],
    media: Sequence[MediaKind],
    num_frames: int,
    config: ModelConfig,
    tokenizer: Tokenizer,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids, labels and branches (`ops.masks.branch_mask`) of questions that share the media and do not see each other:
    each stands behind them as the only one.
    """
    alone = [conversation_tokens([question], media, num_frames, config, tokenizer) for question in questions]
    begun = _beginning(alone[0][0], config)
    ids = np.concatenate([alone[0][0][:begun], *(ids[begun:] for ids, _ in alone)])
    labels = np.concatenate([alone[0][1][:begun], *(labels[begun:] for _, labels in alone)])
    lengths = [begun, *(len(ids) - begun for ids, _ in alone)]
    return ids, labels, np.repeat(np.arange(len(lengths)), lengths)


def _num_tokens(kind: MediaKind, config: ModelConfig, num_frames: int) -> int:
    """Visual tokens of a picture, or of a clip of `num_frames`."""
    return config.clip_tokens(num_frames) if kind == "video" else config.tokens_per_frame(kind)


def _beginning(ids: np.ndarray, config: ModelConfig) -> int:
    """Tokens up to the end of the last medium."""
    return int(np.flatnonzero(np.isin(ids, list(config.placeholder_ids.values())))[-1]) + 1


def _pad_branches(branches: Sequence[np.ndarray], length: int) -> Int[Tensor, "B T"]:
    padded = np.full((len(branches), length), -1)
    for row, branch in enumerate(branches):
        padded[row, : len(branch)] = branch
    return torch.from_numpy(padded)
