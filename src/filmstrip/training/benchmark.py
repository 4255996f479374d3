"""A model's answers to the questions of a file, saved one by one, and their scores.

The output directory holds `answers.jsonl` (`id`, `question`, `answer`, `pred` on each line, as Video-LLaVA's own
scripts write them for a judge), `settings.json` (what the answers depend on) and `results.json`.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from filmstrip.api import Assistant
from filmstrip.checkpoint.json_file import read_json
from filmstrip.checkpoint.write import json_bytes
from filmstrip.errors import FilmstripError
from filmstrip.media.clip import Clip
from filmstrip.training.log import read_log
from filmstrip.training.questions import AskedQuestion
from filmstrip.training.scoring import Metric, score

ANSWERS_FILE, SETTINGS_FILE, RESULTS_FILE = "answers.jsonl", "settings.json", "results.json"


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

    A question that cannot be asked is kept with its reason, and counts as wrong. Raises `FilmstripError` when `output`
    holds answers of another model or other settings, or cannot be written.
    """
    settings = _settings(assistant, options)
    done = _earlier(output, settings)
    left = [question for question in questions if question.id not in done]
    try:
        with (output / ANSWERS_FILE).open("a", encoding="utf-8") as file:
            for row in _answers(assistant, left, options):
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                file.flush()
                done[row["id"]] = row
                on_progress(len(done), len(questions))
        results = {**_score(questions, done, options.metric), "settings": settings}
        (output / RESULTS_FILE).write_bytes(json_bytes(results))
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
            row = {"id": question.id, "question": question.question, "answer": question.answer}
            row["pred"] = said.get(question.id, "")
            yield row if question.id in said else row | {"error": problems[question.id]}


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
        "prompt": origin.preset.prompt,
        "dtype": origin.dtype,
        "compute": origin.compute,
        "kv": origin.kv,
        "max_new_tokens": options.max_new_tokens,
        "suffix": options.suffix,
    }


def _earlier(output: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The answers that are there already, by id; a line cut short by a kill is taken off the file."""
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
        (output / SETTINGS_FILE).write_bytes(json_bytes(settings))
        path = output / ANSWERS_FILE
        rows = [row for row in read_log(path) if isinstance(row, dict) and {"id", "pred"} <= row.keys()]
        if rows:
            partial = path.with_suffix(".partial")
            partial.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
            partial.replace(path)
    except OSError as error:
        raise FilmstripError(f"cannot write {output}: {error.strerror or error}") from error
    return {row["id"]: row for row in rows}


def _score(questions: Sequence[AskedQuestion], done: dict[str, Any], metric: Metric) -> dict[str, Any]:
    scores = [score(metric, row.answer, done[row.id]["pred"], row.options) for row in questions]
    failed = [question.id for question in questions if "error" in done[question.id]]
    counted = [
        0.0 if question.id in failed else value
        for question, value in zip(questions, scores, strict=True)
        if value is not None
    ]
    return {
        "metric": metric,
        "questions": len(questions),
        "failed": len(failed),
        "accuracy": sum(counted) / len(counted) if counted else None,
    }
