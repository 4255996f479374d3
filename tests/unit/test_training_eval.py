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
        ("choice", "A", "The answer is a dog", 0),
        ("choice", "B", "The answer is B because it barks", 1),
        ("choice", "B", "", 0),
        ("choice", "a dog", "a cat", 0),  # the truth names no option: nothing is right, least of all nothing
        ("choice", "", "", 0),
        ("contains", "", "", 0),
        ("exact", "?", "!", 0),
        ("open", "x", "y", None),
    ],
)
def test_scores(metric: Metric, truth: str, said: str, expected: float | None) -> None:
    assert score(metric, truth, said) == expected


def test_options_are_named_by_letter_or_by_words() -> None:
    options = ("a cat", "a dog", "a black dog")
    assert chosen("A.", options) == "A"
    assert chosen("The cat", options) == "A"
    two = ("a cat", "a dog")
    for said in (
        "The answer is a dog",
        "Answer: a dog",
        "**B**",
        "I think the answer is: (b)",
        "The right option is B",
    ):
        assert chosen(said, two) == "B", said
    assert chosen("The answer is B since it barks", two) == "B"
    assert chosen("The answer is A dog", two) == "B"
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
    assert list(questions) == ["c", "c_2", "7", "7_2", "8", "9", "t", "#6"]
    assert (questions["c_2"].question, questions["c_2"].answer) == ("how many", "this")
    assert questions["c_2"].media == questions["c"].media
    assert questions["7"].media[0].name == "clip.mp4"
    assert questions["7_2"].prompt.splitlines()[:3] == ["which", "A. red", "B. square"]
    assert "missing file" in questions["8"].problem
    assert "outside the media root" in questions["9"].problem
    assert questions["t"].media == ()
    assert questions["#6"].problem == "not an object"


def test_questions_with_placeholders_and_without_a_true_answer(tmp_path: Path) -> None:
    """A flat question may name its media as a conversation does; the last of a conversation may have no answer."""
    write_media(tmp_path)
    records = [
        {"id": "p", "image": "a.png", "question": "<image>\nwhat is this", "answer": "red"},
        {"id": "q", "image": ["a.png", "b.png"], "question": "<image> what is this", "answer": "red"},
        {"id": "k", "video": "clip.mp4", "question": "<image> what is this", "answer": "red"},
        {"id": "e", "image": "a.png", "question": "<image>", "answer": "red"},
        {"id": "c", "image": "a.png", "conversations": conversation("<image>\nwhat is this", "red", "how many")},
        {"id": "a", "conversations": conversation("what")},
        {"id": "o", "conversations": [*conversation("one more", "this"), {"from": "gpt", "value": "and that"}]},
    ]
    path = tmp_path / "questions.json"
    path.write_text(json.dumps(records))
    marked, uneven, other, empty, first, last, alone, opening = read_questions(path)
    assert (marked.question, len(marked.media), marked.problem) == ("what is this", 1, "")
    assert "placeholder mismatch" in uneven.problem and "placeholder mismatch" in other.problem
    assert empty.problem == "there is no question"
    assert (first.answer, last.question, last.answer, last.media) == ("red", "how many", "", first.media)
    assert (alone.question, alone.answer, alone.problem) == ("what", "", "")
    assert (opening.question, opening.answer) == ("one more", "this"), "what the assistant adds is not a question"


def test_ids_are_names_of_files_and_each_is_there_once(tmp_path: Path) -> None:
    """A judge writes `{output_dir}/{id}.json`. An id of the file's own is never given to a repeated one."""
    ids = ["a/b", "v", "v", "v_2", "v", "a_b", "../x", "y" * 300]
    path = tmp_path / "questions.json"
    path.write_text(json.dumps([{"id": name, "question": "what", "answer": "x"} for name in ids]))
    given = [question.id for question in read_questions(path)]
    assert given[:7] == ["a_b", "v", "v_3", "v_2", "v_4", "a_b_2", ".._x"]
    assert len(set(given)) == len(ids)
    for name in given:
        (tmp_path / f"{name}.json").touch()
    assert len(list(tmp_path.iterdir())) == len(ids) + 1


def test_a_true_answer_that_is_no_text_is_a_problem(tmp_path: Path) -> None:
    path = tmp_path / "questions.json"
    path.write_text(json.dumps([{"question": "what", "answer": value} for value in (["a", "b"], None, 2)]))
    several, missing, number = read_questions(path)
    assert several.problem == "the true answer is not one text"
    assert (missing.answer, missing.problem, number.answer) == ("", "", "2")


def test_answers_are_kept_and_gone_on_with(assistant: Assistant, tmp_path: Path) -> None:
    questions = read_questions(write_questions(tmp_path))
    options = BenchmarkOptions(metric="contains", batch_size=3, max_new_tokens=4)
    results = run_benchmark(assistant, questions, tmp_path / "whole", options)
    assert (results["questions"], results["failed"]) == (8, 3)
    lines = (tmp_path / "whole" / "answers.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["id"] for row in rows] == [question.id for question in questions]
    assert all({"id", "question", "answer", "pred"} <= row.keys() for row in rows)
    assert [row["id"] for row in rows if "error" in row] == ["8", "9", "#6"]
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


def test_a_question_that_failed_is_asked_again(assistant: Assistant, tmp_path: Path) -> None:
    path, options = write_questions(tmp_path), BenchmarkOptions(max_new_tokens=2)
    assert run_benchmark(assistant, read_questions(path), tmp_path / "out", options)["failed"] == 3
    (tmp_path / "none.mp4").write_bytes((tmp_path / "clip.mp4").read_bytes())  # it was on its way
    asked: list[int] = []
    questions = read_questions(path)
    again = run_benchmark(assistant, questions, tmp_path / "out", options, lambda done, total: asked.append(done))
    assert (again["failed"], len(asked)) == (2, 3)
    lines = (tmp_path / "out" / "answers.jsonl").read_text().splitlines()
    assert sorted(json.loads(line)["id"] for line in lines) == sorted(question.id for question in questions)


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("question", {"question": "what does not move"}),
        ("answer", {"answer": "the circle"}),
        ("options", {"options": ["the square", "the circle"]}),
        ("media", {"video_name": "other"}),
    ],
)
def test_answers_to_other_questions_are_not_reused(
    assistant: Assistant, tmp_path: Path, key: str, change: dict[str, Any]
) -> None:
    """Two files of one name have the same ids and, by default, the same output."""
    options, record = (
        BenchmarkOptions(max_new_tokens=2),
        {"video_name": "clip", "question": "what moves", "answer": "a"},
    )
    write_media(tmp_path)
    (tmp_path / "other.mp4").write_bytes((tmp_path / "clip.mp4").read_bytes())
    path = tmp_path / "questions.json"
    for values in (record, record | change):
        path.write_text(json.dumps([values]))
        if values == record:
            run_benchmark(assistant, read_questions(path), tmp_path / "out", options)
            before = (tmp_path / "out" / "answers.jsonl").read_bytes()
            continue
        with pytest.raises(FilmstripError, match=rf"another question with the id '#0' \(its {key} differs\)"):
            run_benchmark(assistant, read_questions(path), tmp_path / "out", options)
    assert (tmp_path / "out" / "answers.jsonl").read_bytes() == before


def test_more_questions_of_the_same_file_go_on_from_the_first(assistant: Assistant, tmp_path: Path) -> None:
    questions, options = read_questions(write_questions(tmp_path)), BenchmarkOptions(max_new_tokens=2)
    asked: list[tuple[int, int]] = []
    for limit in (1, 3, 2):
        run_benchmark(
            assistant, questions[:limit], tmp_path / "out", options, lambda done, total: asked.append((done, total))
        )
    assert asked == [(1, 1), (2, 3), (3, 3)]


def test_an_answer_is_read_back_whatever_characters_stand_in_it(assistant: Assistant, tmp_path: Path) -> None:
    path, options = tmp_path / "questions.json", BenchmarkOptions(max_new_tokens=2)
    half = {"question": "half a character: \ud800", "answer": "x"}  # cannot be asked, and is named all the same
    path.write_text(json.dumps([{"question": "what\u2028is\x85this", "answer": "é"}, half]))
    asked: list[int] = []
    for _ in range(2):
        run_benchmark(
            assistant, read_questions(path), tmp_path / "out", options, lambda done, total: asked.append(done)
        )
    assert asked == [1, 2, 2]


def test_questions_without_a_true_option_are_named_and_wrong(assistant: Assistant, tmp_path: Path) -> None:
    records = [
        {"id": "letter", "question": "which", "answer": "B", "options": ["red", "square"]},
        {"id": "number", "question": "which", "answer": 1, "options": ["red", "square"]},
        {"id": "none", "question": "which", "options": ["red", "square"]},
    ]
    path = tmp_path / "questions.json"
    path.write_text(json.dumps(records))
    run = [assistant, read_questions(path), tmp_path / "out"]
    results = run_benchmark(*run, BenchmarkOptions("choice", max_new_tokens=2))
    assert (results["failed"], results["without_truth"]) == (0, ["number", "none"])
    assert run_benchmark(*run, BenchmarkOptions("exact", max_new_tokens=2))["without_truth"] == ["none"]
    assert run_benchmark(*run, BenchmarkOptions("open", max_new_tokens=2))["without_truth"] == []


def test_records_of_video_chatgpt_go_to_their_judges(assistant: Assistant, tmp_path: Path) -> None:
    """`Q` and `A` become `pred`, two questions of one record `pred1` and `pred2`: one list, everything else kept."""
    write_media(tmp_path)
    records = [
        {"video_name": "clip", "Q": "what moves", "A": "the square", "more": 1},
        {"video_name": "clip", "Q1": "how many", "Q2": "what is a video", "A": "this"},
        {"video_name": "clip", "Q1": "is this red", "Q2": "is this a square", "A": "this"},
    ]
    path = tmp_path / "consistency.json"
    path.write_text(json.dumps(records))
    questions = read_questions(path)
    assert [question.id for question in questions] == ["#0", "#1", "#1_2", "#2", "#2_2"]
    run_benchmark(assistant, questions[:4], tmp_path / "out", BenchmarkOptions("open", max_new_tokens=2))
    said = {
        row["id"]: row["pred"] for row in map(json.loads, (tmp_path / "out" / "answers.jsonl").read_text().splitlines())
    }
    assert json.loads((tmp_path / "out" / "judge.json").read_text()) == [
        {**records[0], "pred": said["#0"]},
        {**records[1], "pred1": said["#1"], "pred2": said["#1_2"]},
    ]


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
