"""Options that several verbs share."""

from typing import Annotated

import typer

MODEL_HELP = "tiny (bundled), a checkpoint directory, or a hub id such as LanguageBind/Video-LLaVA-7B-hf"

Model = Annotated[str, typer.Option("--model", "-m", help=MODEL_HELP)]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ... (default: the first GPU, else the CPU)")]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16 (default: as stored)")]
PresetName = Annotated[
    str | None, typer.Option("--preset", help="original or transformers (default: the checkpoint's)")
]
Frames = Annotated[int | None, typer.Option(min=1, help="Frames taken from each video (default: as trained)")]
Sampler = Annotated[str | None, typer.Option(help="uniform-inclusive, uniform-exclusive, fps, times or indices")]
Fps = Annotated[float | None, typer.Option(help="With --sampler fps: frames per second")]
At = Annotated[str | None, typer.Option(help="With --sampler times or indices: comma-separated seconds or numbers")]
Transform = Annotated[str | None, typer.Option(help="clip-pil-bicubic, languagebind or languagebind-random-flip")]
PromptName = Annotated[
    str | None, typer.Option("--prompt", help="vicuna-v1, vicuna-v1-no-system, hf-plain or chat-template")
]
Temporal = Annotated[
    bool | None, typer.Option("--temporal/--no-temporal", help="Temporal attention of the video tower on or off")
]
System = Annotated[str | None, typer.Option(help="System line in front of the conversation")]
MaxNewTokens = Annotated[int | None, typer.Option(min=1, help="Longest answer in tokens")]
Temperature = Annotated[float | None, typer.Option(help="0 is greedy, higher is more random")]
TopP = Annotated[float | None, typer.Option(help="Keep the most likely tokens that reach this probability")]
TopK = Annotated[int | None, typer.Option(help="Keep this many most likely tokens")]
MinP = Annotated[float | None, typer.Option(help="Keep tokens at least this likely relative to the best")]
RepetitionPenalty = Annotated[float | None, typer.Option(help="Above 1 discourages tokens already present")]
Seed = Annotated[int | None, typer.Option(help="Makes sampling repeatable")]
Stop = Annotated[list[str] | None, typer.Option(help="End the answer before this text; may be given several times")]
Debug = Annotated[bool, typer.Option("--debug", help="On an error, show the traceback too")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output and nothing else")]
