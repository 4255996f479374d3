"""What `filmstrip_world.yaml` asks, shows and counts: every question of an exported world that has a short answer."""

from pathlib import Path
from typing import Any

from filmstrip.training.scoring import score
from filmstrip.training.world_files import read_world

WORLD = Path("world")  # as in the task's data_files


def one_question_each(dataset: Any) -> Any:
    """A data set with a row per question in the place of one with a row per conversation."""
    from datasets import Dataset

    return Dataset.from_list(questions(WORLD))


def questions(world: Path) -> list[dict[str, str]]:
    """Questions about an exported world. Descriptions are left out: they are scored by their facts, not their words."""
    return [
        {"id": f"{item.id}-{number}", "medium": str(item.path), "question": question.text, "answer": question.answer}
        for item in read_world(world)
        for number, question in enumerate(item.questions)
        if question.family != "describe"
    ]


def media(row: dict[str, str]) -> list[str]:
    """The clip or picture of a row; the model reads the file itself."""
    return [row["medium"]]


def scores(row: dict[str, str], said: list[str]) -> dict[str, float | None]:
    """Right or wrong, as `filmstrip eval --metric exact` counts."""
    return {"exact_match": score("exact", row["answer"], said[0])}
