"""Accuracy of a model in the world, by family of question, beside what needs no understanding of the clip.

Controls, all on the same clips: the best constant answer (of each family, and of each phrasing, which a question gives
away before the clip is looked at), the first frame alone (repeated), frames shuffled, and frames reversed (scored
twice: against the clip's truth and against the reversed clip's truth).
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, astuple, dataclass, field, replace

import numpy as np
import torch

from filmstrip.config import MediaKind
from filmstrip.generation import VideoLlavaForGeneration
from filmstrip.inputs.collate import collate
from filmstrip.inputs.processor import Processor
from filmstrip.media.clip import Clip
from filmstrip.text.prompt import user_turn
from filmstrip.world import (
    CLIPS,
    FAMILIES,
    GROUPS,
    STILLS,
    Agreement,
    Question,
    agreement,
    ask_about,
    draw_clip,
    reversed_question,
    sample_clip,
    sample_still,
    score,
    split_rng,
)

CONDITIONS = ("ordered", "shuffled", "reversed", "first frame")
_BATCH = 64
_MAX_NEW_TOKENS = 96  # the longest description has 55
_QUESTIONS = 7  # about each clip


@dataclass(frozen=True)
class Example:
    """One question about one drawn clip or picture."""

    frames: np.ndarray
    question: Question
    kind: MediaKind


@dataclass
class FamilyResult:
    """Mean scores of one family, or of a group of them, 0 to 1 (`describe`: F1 of stated facts).

    `constant` is the score of the best answer that is the same for all questions, `constant_by_phrasing` of the best
    one for each phrasing; both are chosen with the answers in sight, so they flatter themselves on few questions.
    `facts` has the mean precision and recall of the facts that descriptions state, by condition.
    """

    questions: int
    constant: float
    accuracy: dict[str, float] = field(default_factory=dict)
    reversed_truth: float | None = None
    constant_by_phrasing: float = 0.0
    facts: dict[str, Agreement] = field(default_factory=dict)


def make_examples(
    kind: MediaKind, count: int, seed: int, size: int, photos: Sequence[np.ndarray] = ()
) -> list[Example]:
    """Questions of every family about `count` clips or pictures of the test split, `_QUESTIONS` each."""
    rng = split_rng("test", seed)
    clip, still = (replace(options, num_photos=len(photos)) for options in (CLIPS, STILLS))
    examples = []
    for _ in range(count):
        scene = sample_clip(rng, "test", clip) if kind == "video" else sample_still(rng, still)
        frames = draw_clip(scene, size, photos)
        examples += [Example(frames, question, kind) for question in ask_about(scene, rng, _QUESTIONS)]
    return examples


def answer(
    model: VideoLlavaForGeneration,
    processor: Processor,
    examples: Sequence[Example],
    on_progress: Callable[[int], None] = lambda done: None,
) -> list[str]:
    """Greedy answers, in the order of `examples`, each asked as the first turn of its own conversation."""
    texts = []
    for start in range(0, len(examples), _BATCH):
        rows = examples[start : start + _BATCH]
        prompts = [processor.prepare([as_clip(row)], [user_turn(row.question.text)]) for row in rows]
        batch = collate(prompts, processor.model_config.pad_token_id)
        ids = model.generate(
            batch.input_ids,
            batch.pixel_values_images,
            batch.pixel_values_videos,
            batch.attention_mask,
            max_new_tokens=_MAX_NEW_TOKENS,
        )
        texts += [processor.tokenizer.decode(row).strip() for row in ids.tolist()]
        on_progress(len(rows))
    return texts


def evaluate(
    model: VideoLlavaForGeneration,
    processor: Processor,
    examples: Sequence[Example],
    conditions: Sequence[str] = CONDITIONS,
    seed: int = 0,
    on_progress: Callable[[int], None] = lambda done: None,
) -> dict[str, FamilyResult]:
    """Score every family under every condition; pictures have the condition `ordered` alone."""
    by_family: dict[str, list[int]] = defaultdict(list)
    for index, example in enumerate(examples):
        by_family[example.question.family].append(index)
    results = {
        family: _constants([examples[index].question for index in by_family[family]])
        for family in FAMILIES
        if family in by_family
    }
    rng = np.random.default_rng(seed)
    for condition in conditions if examples and examples[0].kind == "video" else ("ordered",):
        shown = [_alter(example, condition, rng) for example in examples]
        with torch.inference_mode():
            texts = answer(model, processor, shown, on_progress)
        for family, indices in by_family.items():
            pairs = [(examples[index].question, texts[index]) for index in indices]
            _note(results[family], condition, pairs)
    return results


def _constants(questions: Sequence[Question]) -> FamilyResult:
    phrasings: dict[str, list[Question]] = defaultdict(list)
    for question in questions:
        phrasings[question.phrasing].append(question)
    by_phrasing = sum(best_constant(alike) * len(alike) for alike in phrasings.values()) / len(questions)
    return FamilyResult(len(questions), best_constant(questions), constant_by_phrasing=by_phrasing)


def _note(result: FamilyResult, condition: str, pairs: Sequence[tuple[Question, str]]) -> None:
    """Enter what the answers of one family score under one condition."""
    result.accuracy[condition] = float(np.mean([score(*pair) for pair in pairs]))
    if condition == "reversed":
        truths = [score(reversed_question(question), text) for question, text in pairs]
        result.reversed_truth = float(np.mean(truths))
    found = [agreement(question.facts, text) for question, text in pairs if question.facts]
    if found:
        means = (float(np.mean(values)) for values in zip(*(astuple(one) for one in found), strict=True))
        result.facts[condition] = Agreement(*means)


def by_group(results: dict[str, FamilyResult]) -> dict[str, FamilyResult]:
    """The results of families joined to those of their groups, each question counting alike."""
    groups = {}
    for group, families in GROUPS.items():
        parts = [results[family] for family in families if family in results]
        if parts:
            groups[group] = _joined(parts)
    return groups


def _joined(parts: Sequence[FamilyResult]) -> FamilyResult:
    weights = np.array([part.questions for part in parts]) / sum(part.questions for part in parts)
    backwards = [part.reversed_truth for part in parts if part.reversed_truth is not None]
    return FamilyResult(
        sum(part.questions for part in parts),
        float(weights @ [part.constant for part in parts]),
        {name: float(weights @ [part.accuracy[name] for part in parts]) for name in parts[0].accuracy},
        float(weights @ backwards) if len(backwards) == len(parts) else None,
        float(weights @ [part.constant_by_phrasing for part in parts]),
        parts[0].facts if len(parts) == 1 else {},
    )


def best_constant(questions: Sequence[Question]) -> float:
    """Mean score of the best answer that is the same for every question of a family."""
    answers = [text for text, _ in Counter(question.answer for question in questions).most_common(10)]
    return max(float(np.mean([score(question, text) for question in questions])) for text in answers)


def markdown_table(results: dict[str, FamilyResult]) -> str:
    """One row per family (or group), percentages."""
    header = (
        "| family | questions | best constant | per phrasing | accuracy | shuffled | reversed | reversed, by its truth "
        "| first frame |"
    )
    lines = [header, "|---|---|---|---|---|---|---|---|---|"]
    for family, result in results.items():
        numbers: list[float | None] = [result.constant, result.constant_by_phrasing]
        numbers += [result.accuracy.get(name) for name in ("ordered", "shuffled", "reversed")]
        numbers += [result.reversed_truth, result.accuracy.get("first frame")]
        shown = ["" if number is None else f"{100 * number:.1f}" for number in numbers]
        lines.append(f"| {family} | {result.questions} | {' | '.join(shown)} |")
    return "\n".join(lines)


def as_json(results: dict[str, FamilyResult]) -> dict[str, object]:
    """The results as plain data."""
    return {family: asdict(result) for family, result in results.items()}


def as_clip(example: Example) -> Clip:
    """The frames of an example as if they had been read from a file."""
    count = len(example.frames)
    return Clip(
        path="drawn",
        kind=example.kind,
        frames=example.frames,
        times=tuple(index / count for index in range(count)),
        indices=tuple(range(count)),
        total_frames=count,
        duration=1.0,
        warnings=(),
    )


def _alter(example: Example, condition: str, rng: np.random.Generator) -> Example:
    count = len(example.frames)
    order = {
        "ordered": np.arange(count),
        "shuffled": rng.permutation(count),
        "reversed": np.arange(count)[::-1],
        "first frame": np.zeros(count, int),
    }[condition]
    return Example(np.ascontiguousarray(example.frames[order]), example.question, example.kind)
