"""Sample answers: what the model says now to a few questions that stay the same."""

from collections.abc import Sequence

import numpy as np
import torch

from filmstrip.api import Assistant
from filmstrip.inputs.processor import Prompt
from filmstrip.media.load import load_media
from filmstrip.text.prompt import Turn, user_turn
from filmstrip.training.evaluate import Example, as_clip, make_examples
from filmstrip.training.examples import ExampleReader
from filmstrip.training.log import Rows
from filmstrip.training.recipe import Precision, SampleRecipe
from filmstrip.training.records import KINDS, RawRecord, parse_record

_SEED = 1_000  # of the clips that are asked about: not those of an evaluation


def world_probe(assistant: Assistant, photos: Sequence[np.ndarray], recipe: SampleRecipe, precision: Precision) -> Rows:
    """A question about each of `count` drawn clips of the test split, all of different families while there are."""
    size = assistant.config.video_tower.image_size
    pending = make_examples("video", 4 * recipe.count, _SEED, size, photos)
    examples: list[Example] = []
    while pending and len(examples) < recipe.count:
        families = {row.question.family for row in examples}
        chosen = next((row for row in pending if row.question.family not in families), pending[0])
        examples.append(chosen)
        pending = [row for row in pending if row.frames is not chosen.frames]
    prompts = [
        assistant.processor.prepare([as_clip(example)], [user_turn(example.question.text)]) for example in examples
    ]
    said = _answers(assistant, prompts, recipe, precision)
    return [(row.question.text, text, row.question.answer) for row, text in zip(examples, said, strict=True)]


def record_probe(
    assistant: Assistant,
    reader: ExampleReader,
    records: Sequence[RawRecord],
    recipe: SampleRecipe,
    precision: Precision,
) -> Rows:
    """The first question of the first records that can be read."""
    prompts: list[Prompt] = []
    asked: list[tuple[str, str]] = []
    for raw in records:
        if len(prompts) == recipe.count:
            break
        try:
            record = parse_record(raw)
            first = next(index for index, turn in enumerate(record.turns) if turn.role == "assistant")
            turns: list[Turn] = list(record.turns[:first])
            kinds = [kind for turn in turns for kind in turn.media]
            files = {kind: iter([path for name, path in record.media if name == kind]) for kind in KINDS}
            clips = [load_media(next(files[kind]), reader.selection) for kind in kinds]
            prompts.append(assistant.processor.prepare(clips, turns))
        except Exception:  # a sample that cannot be read, whatever is wrong with it; training reports it
            continue
        asked.append((turns[-1].text, record.turns[first].text))
    said = _answers(assistant, prompts, recipe, precision)
    return [(question, text, truth) for (question, truth), text in zip(asked, said, strict=True)]


def _answers(assistant: Assistant, prompts: Sequence[Prompt], recipe: SampleRecipe, precision: Precision) -> list[str]:
    """Greedy answers, one at a time; the model is left as it was."""
    model = assistant.model
    was_training = model.training
    model.eval()
    device = model.text_tower.token_embedding.weight.device
    texts = []
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16"):
        for prompt in prompts:
            batch = assistant.batch([prompt])
            ids = model.generate(
                batch.input_ids,
                batch.pixel_values_images,
                batch.pixel_values_videos,
                batch.attention_mask,
                batch.image_sizes,
                max_new_tokens=recipe.max_new_tokens,
            )
            texts.append(assistant.processor.tokenizer.decode(ids[0].tolist()).strip())
    model.train(was_training)
    return texts
