"""A model's answers to the questions of a file, saved one by one, and their scores.

The output directory holds `answers.jsonl` (`id`, `question`, `answer`, `pred` on each line, as Video-LLaVA's own
scripts write them for a judge, and what else was asked with: `media`, `options`), `settings.json` (what the answers
depend on), `results.json` and, for questions of Video-ChatGPT's benchmarks, `judge.json`: their records with `pred`, or
`pred1` and `pred2`, in one list, which is what the judges of those read.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from filmstrip.api import Assistant
from filmstrip.checkpoint.atomic import swap_file
from filmstrip.checkpoint.json_file import read_json
from filmstrip.checkpoint.write import json_bytes
from filmstrip.errors import FilmstripError
from filmstrip.media.clip import Clip
from filmstrip.training.log import read_log
from filmstrip.training.questions import PRED_KEYS, AskedQuestion
from filmstrip.training.scoring import Metric, has_truth, score

ANSWERS_FILE, SETTINGS_FILE, RESULTS_FILE = "answers.jsonl", "settings.json", "results.json"
JUDGE_FILE = "judge.json"
_ESCAPED = "backslashreplace"  # half a character (a lone surrogate) is written as JSON escapes it


@dataclass(frozen=True)
class BenchmarkOptions:
    """How questions are asked and scored. `suffix` is put behind every question, on a line of its own."""

    metric: Metric = "exact"
    batch_size: int = 8
    max_new_tokens: int = 64
    suffix: str = ""


def run_benchmark(
    assistant: Assistant,
    questions: Sequence[AskedQuestion],
    output: Path,
    options: BenchmarkOptions,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Ask what has no answer yet in `output`, then score everything; returns the results.

    A question that cannot be asked is kept with its reason, counts as wrong, and is tried again the next time. Raises
    `FilmstripError` when `output` holds answers of another model, other settings or other questions, or cannot be
    written.
    """
    settings = _settings(assistant, options)
    done = _earlier(output, settings, questions)
    left = [question for question in questions if question.id not in done]
    try:
        with (output / ANSWERS_FILE).open("a", encoding="utf-8", errors=_ESCAPED) as file:
            for row in _answers(assistant, left, options):
                file.write(_line(row))
                file.flush()
                done[row["id"]] = row
                on_progress(len(done), len(questions))
        results = {**_score(questions, done, options.metric), "settings": settings}
        (output / RESULTS_FILE).write_bytes(json_bytes(results))
        judged = _judged(questions, done)
        if judged:
            text = json.dumps(judged, ensure_ascii=False, indent=1)
            (output / JUDGE_FILE).write_text(text, encoding="utf-8", errors=_ESCAPED)
    except OSError as error:
        raise FilmstripError(f"cannot write {output}: {error.strerror or error}") from error
    return results


def _answers(
    assistant: Assistant, questions: Sequence[AskedQuestion], options: BenchmarkOptions
) -> Iterator[dict[str, Any]]:
    waiting = iter(questions)
    while rows := list(islice(waiting, options.batch_size)):
        problems, ready = dict[str, str](), list[tuple[AskedQuestion, tuple[Clip, ...]]]()
        read: dict[tuple[Path, ...], tuple[Clip, ...]] = {}  # several questions about one video read it once
        for question in rows:
            try:
                if question.problem:
                    raise FilmstripError(question.problem)
                if question.media not in read:
                    read[question.media] = assistant.read(question.media)
                ready.append((question, read[question.media]))
            except FilmstripError as error:
                problems[question.id] = str(error)
        said = _ask(assistant, ready, options, problems)
        for question in rows:
            row = {"id": question.id, **_asked(question), "pred": said.get(question.id, "")}
            yield row if question.id in said else row | {"error": problems[question.id]}


def _asked(question: AskedQuestion) -> dict[str, Any]:
    """What a kept answer must agree with, to be the answer to this question."""
    return {
        "question": question.question,
        "answer": question.answer,
        "options": list(question.options),
        "media": list(map(str, question.media)),
    }


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def _ask(
    assistant: Assistant,
    ready: Sequence[tuple[AskedQuestion, tuple[Clip, ...]]],
    options: BenchmarkOptions,
    problems: dict[str, str],
) -> dict[str, str]:
    """Answers by id. A batch that cannot be asked together is asked one by one; what fails then is a problem."""
    suffix = f"\n{options.suffix}" if options.suffix else ""
    requests = [(clips, question.prompt + suffix) for question, clips in ready]
    try:
        answers = assistant.ask_batch(requests, max_new_tokens=options.max_new_tokens, temperature=0.0)
    except FilmstripError as error:
        if len(ready) == 1:
            problems[ready[0][0].id] = str(error)
            return {}
        return {name: text for row in ready for name, text in _ask(assistant, [row], options, problems).items()}
    return {question.id: answer.text.strip() for (question, _), answer in zip(ready, answers, strict=True)}


def _settings(assistant: Assistant, options: BenchmarkOptions) -> dict[str, Any]:
    origin, selection = assistant.origin, assistant.selection
    return {
        "model": origin.model,
        "description": origin.description,
        "weights_hash": origin.weights_hash,
        "preset": origin.preset_name(selection.sampler),
        "frame_sampler": selection.sampler,
        "num_frames": selection.num_frames,
        "image_transform": origin.preset.image_transform,
        "prompt": origin.preset.prompt,
        "dtype": origin.dtype,
        "compute": origin.compute,
        "kv": origin.kv,
        "compiled": origin.compiled,
        "max_new_tokens": options.max_new_tokens,
        "suffix": options.suffix,
    }


def _earlier(output: Path, settings: dict[str, Any], questions: Sequence[AskedQuestion]) -> dict[str, Any]:
    """The answers to `questions` that are there already, by id.

    A line cut short by a kill is taken off the file, and so are questions that could not be asked.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        if (output / SETTINGS_FILE).is_file():
            earlier = read_json(output / SETTINGS_FILE)
            changed = [name for name, value in settings.items() if earlier.get(name) != value]
            if changed:
                raise FilmstripError(
                    f"{output} holds answers given with another {changed[0]} ({str(earlier.get(changed[0]))[:80]}); "
                    "choose another --output"
                )
        path = output / ANSWERS_FILE
        lines = [line for line in read_log(path) if isinstance(line, dict) and {"id", "pred"} <= line.keys()]
        rows = [line for line in lines if "error" not in line]
        found = {row["id"]: row for row in rows}
        known = {question.id: found[question.id] for question in questions if question.id in found}
        for question in questions:
            _require_same(known.get(question.id), question, output)
        (output / SETTINGS_FILE).write_bytes(json_bytes(settings))
        if path.is_file():
            swap_file(path, "".join(map(_line, rows)).encode(errors=_ESCAPED))
    except OSError as error:
        raise FilmstripError(f"cannot write {output}: {error.strerror or error}") from error
    return known


def _require_same(row: dict[str, Any] | None, question: AskedQuestion, output: Path) -> None:
    """Ids alone do not tell questions apart: files of one name, or one that was changed, have the same."""
    changed = [name for name, value in _asked(question).items() if row is not None and row.get(name) != value]
    if changed:
        raise FilmstripError(
            f"{output} holds the answer to another question with the id {question.id!r} (its {changed[0]} differs); "
            "choose another --output"
        )


def _score(questions: Sequence[AskedQuestion], done: dict[str, Any], metric: Metric) -> dict[str, Any]:
    """The mean over all questions; those that could not be asked, or whose true answer says nothing, count as wrong."""
    failed = {question.id for question in questions if "error" in done[question.id]}
    untrue = [row.id for row in questions if row.id not in failed and not has_truth(metric, row.answer, row.options)]
    scores = [
        0.0 if row.id in failed else score(metric, row.answer, done[row.id]["pred"], row.options) for row in questions
    ]
    counted = [value for value in scores if value is not None]
    return {
        "metric": metric,
        "questions": len(questions),
        "failed": len(failed),
        "without_truth": untrue,
        "accuracy": sum(counted) / len(counted) if counted and metric != "open" else None,
    }


def _judged(questions: Sequence[AskedQuestion], done: dict[str, Any]) -> list[dict[str, Any]]:
    """Records of Video-ChatGPT's benchmarks with their answers; one that was asked in part only is left out."""
    records: dict[int, dict[str, Any]] = {}
    for question in questions:
        if question.record is not None:
            record = records.setdefault(question.record.number, dict(question.record.values))
            record[question.pred_key] = done[question.id]["pred"]
    whole = [{pred for key, pred in PRED_KEYS.items() if key in record} for record in records.values()]
    return [record for record, keys in zip(records.values(), whole, strict=True) if keys <= record.keys()]
