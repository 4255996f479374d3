"""From a record to tokens, labels and pixels, and from several of these to a batch."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from filmstrip.config.checks import require
from filmstrip.inputs.plan import PromptPlan
from filmstrip.inputs.processor import Processor
from filmstrip.media.load import load_media
from filmstrip.media.sample import FrameSelection
from filmstrip.shapes import Int, Tensor
from filmstrip.text.prompt import Turn
from filmstrip.training.batches import IGNORE, ConversationBatch, pad_right
from filmstrip.training.records import DataError, RawRecord, parse_record


@dataclass(frozen=True)
class Example:
    """One conversation: ids with placeholders expanded, labels (IGNORE but on the assistant's tokens), pixels, and what
    is wrong with its media.
    """

    ids: np.ndarray
    labels: np.ndarray
    images: tuple[Tensor, ...] = ()
    videos: tuple[Tensor, ...] = ()
    image_sizes: tuple[tuple[int, int], ...] = ()
    warnings: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Number of tokens, visual ones included."""
        return len(self.ids)


class ExampleReader:
    """Reads records for one checkpoint and prompt style.

    Raises `ConfigError` when the style does not close answers with an end-of-sequence: a model trained with it would
    never stop.
    """

    def __init__(
        self, processor: Processor, selection: FrameSelection, eos_ids: Sequence[int], max_tokens: int
    ) -> None:
        self.processor, self.selection, self.max_tokens = processor, selection, max_tokens
        self.eos_ids = frozenset(eos_ids)
        plan, _ = processor.plan((), [Turn("user", "a"), Turn("assistant", "b")], add_generation_prompt=False)
        style = processor.preset.prompt
        require(
            bool(self.eos_ids & {int(label) for label in self._labels(plan)}),
            f"the prompt style {style!r} does not end answers with an end-of-sequence, so a model trained with it "
            "would never stop; choose data.prompt: vicuna-v1",
        )

    def read(self, raw: RawRecord) -> Example:
        """Read a record's media and tokenise its conversation. Raises `FilmstripError` when it cannot be used.

        A clip that is damaged in part, or has fewer frames than are taken, is used; the example's `warnings` say so.
        """
        record = parse_record(raw)
        clips = [load_media(path, self.selection) for _, path in record.media]
        prompt = self.processor.prepare(clips, record.turns, add_generation_prompt=False)
        length = len(prompt.plan.input_ids)
        if length > self.max_tokens:
            raise DataError(f"too long: {length} tokens, max_tokens is {self.max_tokens}")
        labels = self._labels(prompt.plan)
        if not (labels != IGNORE).any():
            raise DataError("no token of an answer is left to learn from")
        ids = np.array(prompt.plan.input_ids)
        warnings = tuple(f"{clip.path}: {text}" for clip in clips for text in clip.warnings)
        return Example(ids, labels, prompt.pixels_images, prompt.pixels_videos, prompt.image_sizes, warnings)

    def _labels(self, plan: PromptPlan) -> np.ndarray:
        """The ids of the assistant's spans, and of the end-of-sequence a template writes behind one."""
        labels = np.full(len(plan.input_ids), IGNORE)
        for span in plan.spans:
            if not span.label.startswith("assistant") or span.kind is not None:
                continue
            end = span.end
            if end < len(plan.input_ids) and plan.input_ids[end] in self.eos_ids:
                end += 1
            labels[span.start : end] = plan.input_ids[span.start : end]
        return labels


def collate_examples(
    examples: Sequence[Example],
    pad_id: int,
    *,
    pack_to: int | None = None,
    skipped: Sequence[tuple[str, str]] = (),
    warnings: Sequence[tuple[str, str]] = (),
) -> ConversationBatch:
    """One batch: each example a row, padded on the right, or several behind one another in rows of up to `pack_to`.

    Without any example it is one token that nothing is learnt from, so that every process has something to do.
    """
    rows = [[index] for index in range(len(examples))]
    if pack_to is not None:
        rows = pack_rows([len(example) for example in examples], pack_to)
    ordered = [examples[index] for row in rows for index in row]
    pieces = [
        (
            np.concatenate([examples[index].ids for index in row]),
            np.concatenate([examples[index].labels for index in row]),
        )
        for row in rows
    ]
    input_ids, labels = pad_right(pieces or [(np.array([pad_id]), np.array([IGNORE]))], pad_id)
    images = [pixels for example in ordered for pixels in example.images]
    videos = [pixels for example in ordered for pixels in example.videos]
    sizes = [size for example in ordered for size in example.image_sizes]
    return ConversationBatch(
        input_ids,
        labels,
        images=torch.cat(images) if images else None,
        videos=torch.stack(videos) if videos else None,
        image_sizes=torch.tensor(sizes) if sizes else None,
        documents=_documents(rows, examples, input_ids.shape[1]) if pack_to is not None and rows else None,
        skipped=tuple(skipped),
        warnings=tuple(warnings),
        num_samples=len(examples),
        num_tokens=sum(len(example) for example in examples),
    )


def pack_rows(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Indices of examples that share a row of up to `capacity` tokens: first-fit decreasing.

    A longer example has a row to itself.
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        place = next((row for row, left in enumerate(room) if left >= lengths[index]), len(rows))
        if place == len(rows):
            rows.append([])
            room.append(max(capacity, lengths[index]))
        rows[place].append(index)
        room[place] -= lengths[index]
    return rows


def _documents(rows: Sequence[Sequence[int]], examples: Sequence[Example], length: int) -> Int[Tensor, "B T"]:
    documents = torch.full((len(rows), length), -1)
    for row, indices in enumerate(rows):
        start = 0
        for number, index in enumerate(indices):
            documents[row, start : start + len(examples[index])] = number
            start += len(examples[index])
    return documents
