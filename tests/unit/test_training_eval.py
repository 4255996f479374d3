"""Evaluation: the rules of scoring, the forms of question files, answers that are kept when it is interrupted."""

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from filmstrip.api import Assistant, load
from filmstrip.errors import FilmstripError
from filmstrip.testing.tiny import write_tiny_checkpoint
from filmstrip.training.benchmark import BenchmarkOptions, run_benchmark
from filmstrip.training.questions import read_questions
from filmstrip.training.scoring import Metric, chosen, score
from tests.training import conversation, write_media


@pytest.fixture(scope="module")
def assistant(tmp_path_factory: pytest.TempPathFactory) -> Assistant:
    path = tmp_path_factory.mktemp("base") / "checkpoint"
    write_tiny_checkpoint(path)
    return load(path, quiet=True)


@pytest.mark.parametrize(
    ("metric", "truth", "said", "expected"),
    [
        ("exact", "the red square", "Red square.", 1),
        ("exact", "red", "dark red", 0),
        ("exact", "a", "A.", 1),
        ("exact", "a", "b", 0),
        ("contains", "red square", "It is a red square, I think", 1),
        ("contains", "red square", "a red and a square", 0),
        ("contains", "car", "a cartoon", 0),
        ("choice", "B", "(b) the dog", 1),
        ("choice", "B", "B", 1),
        ("choice", "B", "The answer is C.", 0),
        ("choice", "B", "a dog", 0),
        ("choice", "B", "", 0),
        ("open", "x", "y", None),
    ],
)
def test_scores(metric: Metric, truth: str, said: str, expected: float | None) -> None:
    assert score(metric, truth, said) == expected


def test_options_are_named_by_letter_or_by_words() -> None:
    options = ("a cat", "a dog", "a black dog")
    assert chosen("A.", options) == "A"
    assert chosen("The cat", options) == "A"
    assert chosen("a dog", options) == "B"
    assert chosen("it is the black dog over there", options) == ""  # "dog" is in two of them
    assert chosen("a black dog", options) == "C"
    assert chosen("Z", options) == ""
    assert score("choice", "a cat", "A", options) == 1
    assert score("choice", "A", "a dog", options) == 0


def write_questions(folder: Path) -> Path:
    write_media(folder)
    records: list[Any] = [
        {
            "id": "c",
            "image": "a.png",
            "conversations": conversation("<image>\nwhat is this", "red", "how many", "this"),
        },
        {"question_id": 7, "video_name": "clip", "question": "what moves", "answer": "the square"},
        {"question_id": 7, "image": "b.png", "question": "which", "answer": "B", "options": ["red", "square"]},
        {"question_id": 8, "video": "none.mp4", "question": "what", "answer": "x"},
        {"question_id": 9, "video": "../clip.mp4", "question": "what", "answer": "x"},
        {"id": "t", "question": "what is a video", "answer": "this"},
        "nonsense",
    ]
    path = folder / "questions.json"
    path.write_text(json.dumps(records))
    return path


def test_forms_of_question_files(tmp_path: Path) -> None:
    questions = {question.id: question for question in read_questions(write_questions(tmp_path))}
    assert list(questions) == ["c", "c/2", "7", "7/2", "8", "9", "t", "#6"]
    assert (questions["c/2"].question, questions["c/2"].answer) == ("how many", "this")
    assert questions["c/2"].media == questions["c"].media
    assert questions["7"].media[0].name == "clip.mp4"
    assert questions["7/2"].prompt.splitlines()[:3] == ["which", "A. red", "B. square"]
    assert "missing file" in questions["8"].problem
    assert "outside the media root" in questions["9"].problem
    assert questions["t"].media == ()
    assert questions["#6"].problem == "not an object"


def test_answers_are_kept_and_gone_on_with(assistant: Assistant, tmp_path: Path) -> None:
    questions = read_questions(write_questions(tmp_path))
    options = BenchmarkOptions(metric="contains", batch_size=3, max_new_tokens=4)
    results = run_benchmark(assistant, questions, tmp_path / "whole", options)
    assert (results["questions"], results["failed"]) == (8, 3)
    lines = (tmp_path / "whole" / "answers.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["id"] for row in rows] == [question.id for question in questions]
    assert all(row.keys() - {"error"} == {"id", "question", "answer", "pred"} for row in rows)
    alone = assistant.ask(questions[2].media, questions[2].prompt, max_new_tokens=4)
    assert rows[2]["pred"] == alone.text.strip()
    cut = tmp_path / "cut"
    cut.mkdir()
    (cut / "settings.json").write_bytes((tmp_path / "whole" / "settings.json").read_bytes())
    (cut / "answers.jsonl").write_text("\n".join([*lines[:3], lines[3][:20]]))
    asked: list[int] = []
    again = run_benchmark(assistant, questions, cut, options, lambda done, total: asked.append(done))
    assert len(asked) == 5
    assert again == results
    assert sorted((cut / "answers.jsonl").read_text().splitlines()) == sorted(lines)
    with pytest.raises(FilmstripError, match="another max_new_tokens"):
        run_benchmark(assistant, questions, cut, BenchmarkOptions(max_new_tokens=5))


def test_scores_are_means_with_failures_as_wrong(assistant: Assistant, tmp_path: Path) -> None:
    questions = read_questions(write_questions(tmp_path))
    first = run_benchmark(assistant, questions, tmp_path / "out", BenchmarkOptions(max_new_tokens=3))
    assert first["accuracy"] == 0
    path = tmp_path / "out" / "answers.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows[:2]:
        row["pred"] = row["answer"]
    path.write_text("\n".join(map(json.dumps, rows)))
    assert (
        run_benchmark(assistant, questions, tmp_path / "out", BenchmarkOptions(max_new_tokens=3))["accuracy"] == 2 / 8
    )
    judged = run_benchmark(assistant, questions, tmp_path / "out", BenchmarkOptions("open", max_new_tokens=3))
    assert judged["accuracy"] is None


class Request:
    """lmms-eval's `Instance`, as far as a model sees it."""

    def __init__(self, *args: Any) -> None:
        self.args = args


def test_the_plugin_answers_as_the_assistant_does(assistant: Assistant, tmp_path: Path) -> None:
    from filmstrip.training.lmms_eval_plugin import FilmstripModel

    write_media(tmp_path)
    picture = Image.open(tmp_path / "a.png")
    model = FilmstripModel(assistant=assistant, batch_size=2)
    documents = [{"visual": str(tmp_path / "clip.mp4")}, {"visual": picture}, {"visual": None}]
    model.task_dict = {"task": {"test": documents}}
    settings = {"max_new_tokens": 4, "until": ["\n\n"], "temperature": 0}
    requests = [
        Request(f"what is this {number}", settings, lambda doc: [doc["visual"]], number, "task", "test")
        for number in range(3)
    ]
    expected = [
        assistant.ask(media, f"what is this {number}", max_new_tokens=4, stop_strings=("\n\n",)).text.strip()
        for number, media in enumerate((tmp_path / "clip.mp4", tmp_path / "a.png", ()))
    ]
    assert model.generate_until(requests) == expected
    with pytest.raises(NotImplementedError, match="likelihoods"):
        model.loglikelihood([])
    with pytest.raises(FilmstripError, match="unknown model argument 'colour'"):
        FilmstripModel(assistant=assistant, colour="red")


def test_the_plugin_is_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The entry point names a function that gives the harness's manifest (its module stands in for here)."""
    from filmstrip.training import lmms_eval_plugin

    module = types.ModuleType("lmms_eval.models.registry_v2")
    module.ModelManifest = lambda model_id, **paths: (model_id, paths)  # type: ignore[attr-defined]
    for name in ("lmms_eval", "lmms_eval.models"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "lmms_eval.models.registry_v2", module)
    name, paths = lmms_eval_plugin.manifest()
    assert name == "filmstrip"
    assert paths == {"simple_class_path": "filmstrip.training.lmms_eval_plugin.FilmstripModel"}
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert 'filmstrip = "filmstrip.training.lmms_eval_plugin:manifest"' in text
