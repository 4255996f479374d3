"""`filmstrip memory`: how much memory a model needs for a piece of work, estimated and measured; and what fits."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from filmstrip.cli import memory_report, options
from filmstrip.cli.params import MODEL_HELP
from filmstrip.cli.terminal import errors, note, starting, status
from filmstrip.errors import ConfigError

if TYPE_CHECKING:
    from filmstrip.diagnostics.memory_fit import Unknown
    from filmstrip.diagnostics.memory_workload import Workload
    from filmstrip.diagnostics.model_source import ModelSource

_WORK, _PRECISION, _TRAINING, _QUESTION = "Work, for each row of the batch", "Precision", "Training", "Questions"


def _option(panel: str, *names: str, help: str, metavar: str, **others: Any) -> Any:
    return typer.Option(*names, help=help, metavar=metavar, rich_help_panel=panel, **others)


def memory(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)] = "tiny",
    batch: Annotated[str, _option(_WORK, metavar="N|?", help="Rows, each a prompt of its own")] = "1",
    frames: Annotated[
        str | None, _option(_WORK, metavar="N|?", help="Frames of each video [dim](as trained)[/dim]")
    ] = None,
    videos: Annotated[
        int | None, _option(_WORK, metavar="N", min=0, help="Videos [dim](1, or 0 with --images)[/dim]")
    ] = None,
    images: Annotated[int, _option(_WORK, metavar="N", min=0, help="Images")] = 0,
    image_size: Annotated[
        str | None, _option(_WORK, metavar="HxW", help="Size of images in pixels, for models that cut them into tiles")
    ] = None,
    prompt_tokens: Annotated[int, _option(_WORK, metavar="N", min=0, help="Tokens of text in the prompt")] = 64,
    new_tokens: Annotated[
        int, _option(_WORK, metavar="N", min=0, help="Tokens to generate; in training, of the answer")
    ] = 256,
    context: Annotated[
        str | None,
        _option(_WORK, metavar="N|?", help="Tokens in all, media and new ones included, instead of --prompt-tokens"),
    ] = None,
    padded: Annotated[
        bool | None,
        typer.Option(
            "--padded/--equal-length",
            help="Rows differ in length and need a mask [dim](padded if several)[/dim]",
            rich_help_panel=_WORK,
        ),
    ] = None,
    dtype: Annotated[
        str | None, _option(_PRECISION, metavar="NAME", help="float32, bfloat16, float16 [dim](bfloat16)[/dim]")
    ] = None,
    quantize: Annotated[
        str | None, _option(_PRECISION, metavar="NAME", help="int8 or int4, weights of linear layers only")
    ] = None,
    compute: Annotated[
        str | None,
        _option(
            _PRECISION,
            metavar="NAME",
            help="Arithmetic: stored (the weights'), float32 [dim](stored; float32 if quantised on a CPU)[/dim]",
        ),
    ] = None,
    kv: Annotated[
        str, _option(_PRECISION, metavar="NAME", help="Keys and values kept: auto (arithmetic's), float16, bfloat16")
    ] = "auto",
    attention: Annotated[str, _option(_PRECISION, metavar="NAME", help="sdpa or eager")] = "sdpa",
    device: Annotated[
        str | None,
        _option(_PRECISION, metavar="NAME", help="cpu, cuda [dim](cuda; with --measure the one there is)[/dim]"),
    ] = None,
    training: Annotated[
        str | None,
        _option(
            _TRAINING,
            metavar="NAME",
            help="align (projector), finetune (+ text tower), lora, full; 16 bit is autocast",
        ),
    ] = None,
    checkpointing: Annotated[
        bool,
        typer.Option("--checkpointing", help="Compute activations twice, keep few", rich_help_panel=_TRAINING),
    ] = False,
    lora_rank: Annotated[int, _option(_TRAINING, metavar="N", min=1, help="With lora: the adapters' rank")] = 128,
    loss_tokens: Annotated[
        int | None, _option(_TRAINING, metavar="N", min=1, help="Positions with a loss [dim](all)[/dim]")
    ] = None,
    fit: Annotated[
        str | None,
        _option(_QUESTION, metavar="SIZE", help="What fits into 16GiB, 24GB, ...: ? marks what is to be found"),
    ] = None,
    headroom: Annotated[
        float,
        _option(_QUESTION, metavar="PERCENT", min=0, max=90, help="With --fit: kept for the driver, fragmentation"),
    ] = 5.0,
    measure: Annotated[
        bool,
        typer.Option("--measure", help="Run it on random weights and compare", rich_help_panel=_QUESTION),
    ] = False,
    snapshot: Annotated[
        Path | None,
        _option(_QUESTION, metavar="FILE", help="With --measure on CUDA: PyTorch's memory snapshot"),
    ] = None,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> int:
    """Estimate the memory of inference or training from the configuration.

    ? as batch, context or frames asks --fit for the largest. Exit code 1: nothing fits.

    \b[bold]Examples[/bold]
    filmstrip memory 7b --frames 16 --dtype bfloat16
    filmstrip memory 7b --fit 16GiB --frames ?
    filmstrip memory 7b --training finetune --checkpointing --batch 16
    filmstrip memory tiny --measure --device cpu --dtype float32
    """
    unknowns = _unknowns(batch=batch, context=context, frames=frames)
    if unknowns and fit is None:
        raise ConfigError("? needs --fit SIZE: the memory that is there")
    if snapshot is not None and not measure:
        raise ConfigError("--snapshot belongs to --measure")
    if measure and fit is not None:
        raise ConfigError("--fit estimates; leave out --measure")
    with starting():
        from filmstrip.diagnostics.memory_workload import Workload, as_training, for_model
        from filmstrip.diagnostics.model_source import find_model
    with status("reading"):
        source = find_model(model)
    place = _device(device, measure=measure)
    rows = 1 if "batch" in unknowns else _number("--batch", batch)
    several = rows > 1 or "batch" in unknowns or (fit is not None and not unknowns)
    as_stored = source.quantize is not None and dtype is None and quantize is None
    bits = source.quantize if as_stored else quantize
    workload = Workload(
        batch=rows,
        videos=(0 if images else 1) if videos is None else videos,
        frames=source.trained_frames if frames is None or "frames" in unknowns else _number("--frames", frames),
        images=images,
        image_size=_image_size(image_size),
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        context=None if context is None or "context" in unknowns else _number("--context", context),
        padded=several if padded is None else padded,
        dtype=dtype or (as_stored and source.dtype) or "bfloat16",
        stored_bytes=source.nbytes if as_stored else None,
        quantize=bits,
        compute=compute or ("float32" if bits and place == "cpu" and not training else "stored"),
        kv=kv,
        attention=attention,
        device=place.split(":")[0],
        training=as_training(training),
        checkpointing=checkpointing,
        lora_rank=lora_rank,
        loss_tokens=loss_tokens,
    )
    workload = for_model(workload, source.config) if videos is None else workload
    if fit is not None:
        return _fit(source, workload, fit, headroom, unknowns, chosen=bool(dtype or quantize), as_json=as_json)
    return _estimate(source, workload, place if measure else None, snapshot, as_json=as_json)


def _estimate(
    source: "ModelSource", workload: "Workload", place: str | None, snapshot: Path | None, *, as_json: bool
) -> int:
    """Print the estimate, with `place` beside what a run there measured."""
    from filmstrip.diagnostics.memory import estimate

    found = estimate(source.config, workload)
    content = memory_report.estimate_content(source, found)
    comparisons = None
    if place is not None:
        from filmstrip.api.load import as_device
        from filmstrip.diagnostics.memory_measure import compare, measure

        with errors.status("measuring") as spinner:
            run = measure(
                found, source.config, as_device(place), lambda name: spinner.update(f"measuring {name}"), snapshot
            )
        comparisons = compare(found, run)
        content["measured"] = memory_report.measured_content(run, comparisons, place)
        if snapshot is not None:
            note(f"memory snapshot: {snapshot} (https://pytorch.org/memory_viz shows it)")
    if as_json:
        sys.stdout.write(json.dumps(content) + "\n")
    else:
        memory_report.print_estimate(source, found, comparisons)
    return 0


def _fit(
    source: "ModelSource",
    workload: "Workload",
    size: str,
    headroom: float,
    unknowns: list["Unknown"],
    *,
    chosen: bool,
    as_json: bool,
) -> int:
    """Print what fits. Without unknowns: batches, and the most frames (or the longest context) of each."""
    from filmstrip.config import ModelConfig
    from filmstrip.diagnostics.memory_fit import ALL_PRECISIONS, fit
    from filmstrip.diagnostics.memory_units import parse_size

    budget = parse_size(size)
    usable = int(budget * (1 - headroom / 100))
    precisions = [(workload.dtype, workload.quantize)]
    if not unknowns:
        frames = workload.videos > 0 and isinstance(source.config, ModelConfig)
        unknowns = ["batch", "frames" if frames else "context"]
        if not chosen:
            learning = workload.training in ("finetune", "full")
            precisions = [pair for pair in ALL_PRECISIONS if not (learning and pair[1])]
    found = fit(source.config, workload, usable, unknowns, precisions)
    if as_json:
        content = memory_report.fit_content(source, workload, budget, usable, unknowns, found)
        sys.stdout.write(json.dumps(content) + "\n")
    else:
        memory_report.print_fit(source, workload, size, usable, unknowns, found)
    return 0 if found else 1


def _unknowns(**values: str | None) -> list["Unknown"]:
    return [name for name, value in values.items() if value == "?"]  # type: ignore[misc]


def _number(name: str, value: str) -> int:
    if not value.isascii() or not value.isdigit() or len(value) > 9 or int(value) == 0:
        raise ConfigError(f"{name} must be a whole number above zero or ?, not {value!r}")
    return int(value)


def _image_size(text: str | None) -> tuple[int, int] | None:
    """`480x640`: height and width."""
    if text is None:
        return None
    height, _, width = text.lower().partition("x")
    return _number("--image-size (height)", height), _number("--image-size (width)", width)


def _device(name: str | None, *, measure: bool) -> str:
    """The device that is meant: CUDA for an estimate, for a measurement the one that is there."""
    if name is None:
        if not measure:
            return "cuda"
        from filmstrip.api.load import default_device

        return str(default_device())
    if name.split(":")[0] not in ("cpu", "cuda"):
        raise ConfigError(f"--device must be cpu or cuda, not {name!r}")
    return name
