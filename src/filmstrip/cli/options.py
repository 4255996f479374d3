"""Options that several verbs share."""

from pathlib import Path
from typing import Annotated, Any

import typer

MODEL_HELP = "tiny (bundled), a checkpoint directory, or a hub id such as LanguageBind/Video-LLaVA-7B-hf"

_PROGRAM, _FRAMES, _ANSWER, _OUTPUT = "Model", "Frames", "Answer", "Output"


def _option(panel: str, *names: str, help: str, metavar: str | None = None, **others: Any) -> Any:
    return typer.Option(*names, help=help, metavar=metavar, rich_help_panel=panel, **others)


Model = Annotated[str, _option(_PROGRAM, "--model", "-m", metavar="MODEL", help=MODEL_HELP)]
PresetName = Annotated[
    str | None,
    _option(_PROGRAM, "--preset", metavar="NAME", help="original or transformers [dim](the checkpoint's own)[/dim]"),
]
Transform = Annotated[
    str | None,
    _option(
        _PROGRAM,
        metavar="NAME",
        help="clip-pil-bicubic, languagebind, languagebind-pad, languagebind-random-flip [dim](preset's)[/dim]",
    ),
]
PromptName = Annotated[
    str | None,
    _option(
        _PROGRAM,
        "--prompt",
        metavar="NAME",
        help="vicuna-v1, vicuna-v1-no-system, hf-plain, chat-template [dim](preset's)[/dim]",
    ),
]
Temporal = Annotated[
    bool | None,
    _option(
        _PROGRAM,
        "--temporal/--no-temporal",
        help="Temporal attention of the video tower on or off [dim](preset's)[/dim]",
    ),
]
ImageTower = Annotated[
    str | None,
    _option(
        _PROGRAM,
        "--image-tower",
        metavar="MODEL",
        help="Original layout: directory or hub id of the image tower [dim](the checkpoint's)[/dim]",
    ),
]
VideoTower = Annotated[
    str | None,
    _option(
        _PROGRAM,
        "--video-tower",
        metavar="MODEL",
        help="Original layout: directory or hub id of the video tower [dim](the checkpoint's)[/dim]",
    ),
]
Device = Annotated[
    str | None, _option(_PROGRAM, metavar="NAME", help="cpu, cuda, cuda:1, ... [dim](the first GPU, else cpu)[/dim]")
]
Dtype = Annotated[
    str | None, _option(_PROGRAM, metavar="NAME", help="float32, bfloat16, float16 [dim](as stored)[/dim]")
]
Compute = Annotated[
    str,
    _option(
        _PROGRAM,
        metavar="NAME",
        help="Arithmetic with 16-bit weights: auto, stored (theirs), float32 (they stay 16-bit in memory)",
    ),
]
Kv = Annotated[
    str,
    _option(
        _PROGRAM,
        metavar="NAME",
        help="Keys and values kept: auto (as the arithmetic), float16, bfloat16 (half the memory of float32)",
    ),
]
Compiled = Annotated[
    bool,
    _option(_PROGRAM, "--compile", help="Through torch.compile: a slow first answer, faster ones after it"),
]

Frames = Annotated[
    int | None, _option(_FRAMES, metavar="N", min=1, help="Frames taken from each video [dim](as trained)[/dim]")
]
Sampler = Annotated[
    str | None,
    _option(
        _FRAMES,
        metavar="NAME",
        help="uniform-inclusive, uniform-exclusive, fps, times, indices [dim](preset's)[/dim]",
    ),
]
Fps = Annotated[float | None, _option(_FRAMES, metavar="X", help="With --sampler fps: frames per second")]
At = Annotated[
    str | None,
    _option(_FRAMES, metavar="A,B,...", help="With --sampler times or indices: seconds or frame numbers"),
]

System = Annotated[
    str | None, _option(_ANSWER, metavar="TEXT", help="System line in front of the conversation [dim](preset's)[/dim]")
]
MaxNewTokens = Annotated[
    int | None, _option(_ANSWER, metavar="N", min=1, help="Longest answer in tokens [dim](256)[/dim]")
]
Temperature = Annotated[
    float | None, _option(_ANSWER, metavar="X", help="0 is greedy, higher is more random [dim](0)[/dim]")
]
TopP = Annotated[float | None, _option(_ANSWER, metavar="X", help="Keep the most likely tokens up to this probability")]
TopK = Annotated[int | None, _option(_ANSWER, metavar="N", help="Keep this many most likely tokens")]
MinP = Annotated[
    float | None, _option(_ANSWER, metavar="X", help="Keep tokens at least this likely relative to the best")
]
RepetitionPenalty = Annotated[
    float | None, _option(_ANSWER, metavar="X", help="Above 1 discourages tokens already present")
]
Seed = Annotated[
    int | None, _option(_ANSWER, metavar="N", min=0, help="Repeats a random answer [dim](chosen, see run card)[/dim]")
]
Stop = Annotated[
    list[str] | None, _option(_ANSWER, metavar="TEXT", help="End the answer before this text; may be repeated")
]

Json = Annotated[bool, _option(_OUTPUT, "--json", help="One JSON object on standard output and nothing else")]
Debug = Annotated[bool, _option(_OUTPUT, "--debug", help="Show the traceback of an error")]
Cache = Annotated[
    Path | None,
    _option(
        _PROGRAM,
        metavar="DIR",
        help="Remember here what was read of media: a later question about the same costs its own words only",
    ),
]
CacheLimit = Annotated[float, _option(_PROGRAM, "--cache-limit", metavar="GB", help="The most that DIR may hold")]
Explain = Annotated[
    bool,
    _option(
        _OUTPUT,
        "--explain",
        help="Show the token map (what stands where in the prompt) on standard error; --json has it in the run card",
    ),
]
RunCard = Annotated[
    Path | None, _option(_OUTPUT, metavar="FILE", help="Save the run card, a small JSON that says how this ran")
]
