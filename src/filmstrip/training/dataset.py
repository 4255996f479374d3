"""Numbered batches of conversations from files: what a worker process runs."""

import math
from collections.abc import Sequence

from filmstrip.config import MediaKind
from filmstrip.config.checks import require
from filmstrip.errors import FilmstripError
from filmstrip.training.batches import ConversationBatch
from filmstrip.training.examples import Example, ExampleReader, collate_examples
from filmstrip.training.order import SampleOrder
from filmstrip.training.recipe import BatchRecipe
from filmstrip.training.records import RawRecord, estimated_length


class RecordBatches:
    """`batch(number)` reads the samples of one forward pass of one process.

    A step has `micro_batches` of them on each of `num_shares` processes. Samples that cannot be read are left out of
    their batch and named in it, with the reason.
    """

    def __init__(
        self,
        records: Sequence[RawRecord],
        reader: ExampleReader,
        recipe: BatchRecipe,
        seed: int,
        share: int = 0,
        num_shares: int = 1,
    ) -> None:
        self.records, self.reader, self.recipe = records, reader, recipe
        self.share, self.num_shares = share, num_shares
        self.micro_batches, self.per_pass = split_batch(recipe, num_shares)
        config = reader.processor.model_config
        tokens: dict[MediaKind, int] = {
            "image": config.tokens_per_frame("image"),
            "video": config.clip_tokens(reader.selection.num_frames),
        }
        lengths = [estimated_length(record, tokens) for record in records]
        self.order = SampleOrder(lengths, [record.kinds for record in records], recipe.size, recipe.group, seed)

    def __call__(self, number: int) -> ConversationBatch:
        """Read batch `number`."""
        step, part = divmod(number, self.micro_batches)
        start = (part * self.num_shares + self.share) * self.per_pass
        indices = self.order.step(step)[start : start + self.per_pass]
        return self.read([self.records[index] for index in indices])

    def read(self, records: Sequence[RawRecord]) -> ConversationBatch:
        """One batch of these records."""
        examples: list[Example] = []
        skipped: list[tuple[str, str]] = []
        warnings: list[tuple[str, str]] = []
        for record in records:
            try:
                example = self.reader.read(record)
                examples.append(example)
                warnings += [(record.name, text) for text in example.warnings]
            except FilmstripError as error:
                skipped.append((record.name, str(error)))
            except Exception as error:  # one sample of a million must not end a run of days, whatever is wrong with it
                skipped.append((record.name, f"unexpected {type(error).__name__}: {error}"))
        pad_id = self.reader.processor.model_config.pad_token_id
        pack_to = self.reader.max_tokens if self.recipe.pack else None
        return collate_examples(examples, pad_id, pack_to=pack_to, skipped=skipped, warnings=warnings)


class ValidationBatches:
    """`batch(number)` of the same records every time, in their order; shares take turns."""

    def __init__(self, batches: RecordBatches, records: Sequence[RawRecord]) -> None:
        self.batches, self.records = batches, records
        self.size = batches.per_pass * batches.num_shares

    def __len__(self) -> int:
        """Number of batches."""
        return math.ceil(len(self.records) / self.size)

    def __call__(self, number: int) -> ConversationBatch:
        """Read batch `number`."""
        start = number * self.size + self.batches.share * self.batches.per_pass
        return self.batches.read(self.records[start : start + self.batches.per_pass])


def split_batch(recipe: BatchRecipe, num_shares: int) -> tuple[int, int]:
    """Forward passes of a step on one process, and samples of each.

    Raises `ConfigError` when a step's samples cannot be divided so.
    """
    per_pass = recipe.per_device or recipe.size // num_shares
    passes, rest = divmod(recipe.size, per_pass * num_shares)
    require(
        passes > 0 and rest == 0,
        f"batch.size ({recipe.size}) must be a multiple of per_device times the processes that share samples "
        f"({per_pass} x {num_shares})",
    )
    return passes, per_pass
