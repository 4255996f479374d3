"""What speculative decoding by prompt lookup could save on descriptions of clips: python scripts/prompt_lookup.py

Prompt lookup (Saxena 2023) guesses that what followed the last `match` tokens before follows them again, and has up to
`draft` tokens checked in one step. This counts the steps that true descriptions of drawn clips would take; a step with
guesses costs at least what one without costs, so tokens per step is the most that could be gained.
"""

from dataclasses import replace
from typing import Annotated

import typer

from filmstrip.checkpoint.resolve import resolve
from filmstrip.text.tokenizer import Tokenizer
from filmstrip.world import CLIPS, ask_about, sample_clip, split_rng


def main(clips: Annotated[int, typer.Option(help="Drawn clips of the test split")] = 300) -> None:
    """Print tokens per step by length of the match and of the draft."""
    tokenizer = Tokenizer.from_directory(resolve("tiny"))
    rng = split_rng("test", 0)
    texts = []
    for _ in range(clips):
        scene = sample_clip(rng, "test", replace(CLIPS, num_photos=2))
        for question in ask_about(scene, rng, 1, ["describe"]):
            prompt = tokenizer.encode(f"USER: \n{question.text} ASSISTANT:").ids
            texts.append((prompt, tokenizer.encode(f" {question.answer}</s>").ids[1:]))
    total = sum(len(answer) for _, answer in texts)
    typer.echo(f"{len(texts)} descriptions, {total} tokens\n\n| match | draft | tokens a step |\n|---|---|---|")
    for match in (1, 2, 3):
        for draft in (1, 3, 5):
            steps = sum(count_steps(prompt, answer, match, draft) for prompt, answer in texts)
            typer.echo(f"| {match} | {draft} | {total / steps:.3f} |")


def count_steps(prompt: list[int], answer: list[int], match: int, draft: int) -> int:
    """Steps until `answer` is made, where every guess is checked and the first wrong one is replaced."""
    ids, done, steps = list(prompt), 0, 0
    while done < len(answer):
        right = 0
        for guess in look_up(ids, match, draft):
            if done + right >= len(answer) or guess != answer[done + right]:
                break
            right += 1
        new = answer[done : done + right + 1]
        ids, done, steps = ids + new, done + len(new), steps + 1
    return steps


def look_up(ids: list[int], match: int, draft: int) -> list[int]:
    """What followed the last `match` tokens when they last stood together before."""
    key = ids[-match:]
    for start in range(len(ids) - match - 1, -1, -1):
        if ids[start : start + match] == key:
            return ids[start + match : start + match + draft]
    return []


if __name__ == "__main__":
    typer.run(main)
