"""The published 7B shape for real: write random weights, check them, load them, generate a token, beside transformers.

    python scripts/bench_7b.py write DIR     about 15 GB, in four shards, once
    python scripts/bench_7b.py run DIR       every measurement in a process of its own; prints a Markdown table

Weights are random, so what is measured is time and memory, never quality. Times are wall clock; "cold" means that the
shards were dropped from the page cache first. Peak resident memory is the kernel's own high-water mark (VmHWM), pages
of the mapped files included.
"""

import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from safetensors.torch import save_file

from filmstrip.checkpoint.defaults import GenerationDefaults
from filmstrip.checkpoint.hf_config_write import config_values
from filmstrip.checkpoint.layouts import get_layout
from filmstrip.config import ModelConfig
from filmstrip.diagnostics.bench.page_cache import evict
from filmstrip.models import VideoLlava
from filmstrip.testing.tiny import tiny_tokenizer, write_json, write_tiny_processor, write_tiny_tokenizer

MAX_SHARD_BYTES = 4 * 10**9
QUESTION = "What happens in this video?"
IMPLEMENTATIONS = ("filmstrip", "transformers")

app = typer.Typer(add_completion=False, help=__doc__, rich_markup_mode=None)


@app.command()
def write(directory: Path, seed: int = 0) -> None:
    """Write the published configuration with random bfloat16 weights, a shard at a time."""
    directory.mkdir(parents=True, exist_ok=False)
    config = ModelConfig()
    values = config_values(config, generation=GenerationDefaults(pad_id=config.pad_token_id), dtype="bfloat16")
    del values["filmstrip"]  # the published file has no such section
    write_json(directory / "config.json", values)
    _write_tokenizer(directory, config)
    write_tiny_processor(directory, values)
    with torch.device("meta"):
        model = VideoLlava(config)
    layout = get_layout("A")
    shapes = {layout.from_canonical(name).disk: tuple(value.shape) for name, value in model.state_dict().items()}
    shards = _shards(shapes)
    weight_map: dict[str, str] = {}
    generator = torch.Generator().manual_seed(seed)
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file({name: _random(name, shapes[name], generator) for name in names}, directory / file, {"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
        typer.echo(f"{directory / file}: {len(names)} tensors", err=True)
    total = sum(2 * torch.Size(shape).numel() for shape in shapes.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    write_json(directory / "model.safetensors.index.json", index)


def _shards(shapes: dict[str, tuple[int, ...]]) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    room = MAX_SHARD_BYTES
    for name, shape in shapes.items():
        size = 2 * torch.Size(shape).numel()
        if size > room and shards[-1]:
            shards.append([])
            room = MAX_SHARD_BYTES
        shards[-1].append(name)
        room -= size
    return shards


def _random(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Small values around 0, around 1 for the scales of norms, so that activations stay finite."""
    value = torch.empty(shape, dtype=torch.bfloat16).normal_(0.0, 0.02, generator=generator)
    return value + 1 if "norm" in name and name.endswith("weight") else value


def _write_tokenizer(directory: Path, config: ModelConfig) -> None:
    """A tokenizer of the published size: the small one of the tests, filled up so that the special ids are right."""
    write_tiny_tokenizer(directory)
    content = json.loads(tiny_tokenizer().to_str())
    model = content["model"]["vocab"]
    for index in range(len(model), config.image_token_id):
        model[f"<unused_{index}>"] = index
    ids = {"<image>": config.image_token_id, "<video>": config.video_token_id, "<pad>": config.pad_token_id}
    for token in content["added_tokens"]:
        token["id"] = ids.get(token["content"], token["id"])
    write_json(directory / "tokenizer.json", content)


@app.command()
def worker(implementation: str, directory: Path, media: str = "none") -> None:
    """Load and generate one token in this process; prints JSON. `media`: none, or a picture and a clip of one frame."""
    figures = _filmstrip(directory, media) if implementation == "filmstrip" else _transformers(directory)
    figures |= {
        "implementation": implementation,
        "peak_rss": _status("VmHWM"),
        "anonymous_rss": _status("RssAnon"),
        "major_faults": resource.getrusage(resource.RUSAGE_SELF).ru_majflt,
    }
    typer.echo(json.dumps(figures))


def _filmstrip(directory: Path, media: str) -> dict[str, Any]:
    from filmstrip.api import load

    baseline, started = _status("VmRSS"), time.perf_counter()
    assistant = load(directory, quiet=True)
    loaded = time.perf_counter()
    paths: list[str] = []
    options: dict[str, Any] = {}
    if media != "none":
        paths = _write_media(directory)
        options["selection"] = _one_frame(assistant)
    answer = assistant.ask(paths, QUESTION, max_new_tokens=1, **options)
    return _figures(baseline, started, loaded, answer.token_ids[0])


def _figures(baseline: int, started: float, loaded: float, token_id: int) -> dict[str, Any]:
    """Times without imports; `baseline_rss` is the process with its libraries, before the load."""
    token = time.perf_counter() - loaded
    return {"load": loaded - started, "token": token, "token_id": token_id, "baseline_rss": baseline}


def _write_media(directory: Path) -> list[str]:
    from PIL import Image

    from filmstrip.media.encode import write_video

    pixels = (torch.rand(4, 224, 224, 3, generator=torch.Generator().manual_seed(1)) * 255).byte().numpy()
    picture, clip = directory / "bench.png", directory / "bench.mp4"
    Image.fromarray(pixels[0]).save(picture)
    write_video(clip, pixels, 4)
    return [str(picture), str(clip)]


def _one_frame(assistant: Any) -> Any:
    from dataclasses import replace

    return replace(assistant.selection, num_frames=1)


def _transformers(directory: Path) -> dict[str, Any]:
    from tokenizers import Tokenizer

    from filmstrip.oracle.reference import load_reference, reference_generate

    baseline, started = _status("VmRSS"), time.perf_counter()
    model = load_reference(directory, dtype=torch.bfloat16)
    loaded = time.perf_counter()
    prompt = f"USER: {QUESTION} ASSISTANT:"
    ids = torch.tensor([Tokenizer.from_file(str(directory / "tokenizer.json")).encode(prompt).ids])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    token_id = int(reference_generate(model, inputs, max_new_tokens=1)[0, 0])
    return _figures(baseline, started, loaded, token_id)


def _status(key: str) -> int:
    """Bytes of one line of this process's /proc status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    return 0


@app.command()
def run(
    directory: Path,
    rounds: Annotated[int, typer.Option(help="Runs of each implementation, cold and warm")] = 3,
    media: Annotated[bool, typer.Option(help="Also one token about a picture and a frame of video (minutes)")] = True,
    out: Annotated[Path | None, typer.Option(help="Also write all figures as JSON here")] = None,
) -> None:
    """Check, load and generate; both implementations in turn, so that both meet the same machine."""
    files = sorted(directory.glob("*.safetensors"))
    weights = sum(file.stat().st_size for file in files)
    figures: dict[str, Any] = {"weights_bytes": weights, "shards": len(files), "threads": torch.get_num_threads()}
    for name, options in (("check --fast", ["--fast"]), ("check", [])):
        started = time.perf_counter()
        command = [_command(), "check", str(directory), "--json", *options]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # 1 means findings
        figures[name] = {"seconds": time.perf_counter() - started, "exit": done.returncode}
        figures[name]["sentence"] = json.loads(done.stdout).get("sentence")
    for state in ("cold", "warm"):
        for _ in range(rounds):
            for implementation in IMPLEMENTATIONS:
                if state == "cold":
                    evict(files)
                figures.setdefault(f"{implementation} {state}", []).append(_measure(implementation, directory))
    if media:
        figures["filmstrip with media"] = [_measure("filmstrip", directory, "both")]
    typer.echo(_table(figures))
    if out is not None:
        out.write_text(json.dumps(figures, indent=2) + "\n")


def _command() -> str:
    return str(Path(sys.executable).with_name("filmstrip"))


def _measure(implementation: str, directory: Path, media: str = "none") -> dict[str, Any]:
    command = [sys.executable, __file__, "worker", implementation, str(directory), "--media", media]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    figures = json.loads(done.stdout.splitlines()[-1])
    typer.echo(json.dumps(figures), err=True)
    return figures


def _table(figures: dict[str, Any]) -> str:
    weights = figures["weights_bytes"]
    lines = [
        f"Weights: {weights:,} bytes in {figures['shards']} shards; {figures['threads']} threads.",
        *(
            f"`{name}`: {figures[name]['seconds']:.2f} s, exit {figures[name]['exit']}: {figures[name]['sentence']}"
            for name in ("check --fast", "check")
        ),
        "",
        "| run | load, s | first token, s | together, s | peak resident / weights | anonymous, GB |",
        "|---|---|---|---|---|---|",
    ]
    for name, runs in figures.items():
        if not isinstance(runs, list):
            continue
        load, token = ([run[key] for run in runs] for key in ("load", "token"))
        both = [first + second for first, second in zip(load, token, strict=True)]
        peak = max(run["peak_rss"] for run in runs)
        anonymous = max(run["anonymous_rss"] for run in runs)
        lines.append(
            f"| {name} | {_spread(load)} | {_spread(token)} | {_spread(both)} "
            f"| {peak / weights:.3f} | {anonymous / 1e9:.2f} |"
        )
    return "\n".join(lines)


def _spread(seconds: list[float]) -> str:
    if len(seconds) == 1:
        return f"{seconds[0]:.2f}"
    return f"{statistics.median(seconds):.2f} ({min(seconds):.2f}–{max(seconds):.2f})"


if __name__ == "__main__":
    app()
