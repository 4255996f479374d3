"""Commands that are timed from the start of the process to its end."""

import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filmstrip.checkpoint.resolve import resolve
from filmstrip.diagnostics.bench import launcher
from filmstrip.diagnostics.bench.machine import OtherWork
from filmstrip.diagnostics.bench.peer import OURS, THEIRS, TIMEOUT, Sample, last_words
from filmstrip.errors import FilmstripError

HELP, FIRST_ANSWER = "start-up, help", "first answer of the embedded model, process start included"
_QUESTION = "How many shapes are there?"
_SHOWN = 60  # characters of a command that failed

# What a user of transformers writes: its processor needs torchvision, so frames come decoded, and ids from tokenizers.
_THEIR_ANSWER = """
import sys, torch, av, numpy
from PIL import Image
from tokenizers import Tokenizer
from transformers import VideoLlavaForConditionalGeneration
model = VideoLlavaForConditionalGeneration.from_pretrained(sys.argv[1]).eval()
with av.open(sys.argv[2]) as file:
    frames = [frame.to_image() for frame in file.decode(video=0)]
size = model.config.vision_config.image_size
chosen = [frames[int(i * len(frames) / 8)].resize((size, size), Image.BICUBIC) for i in range(8)]
pixels = torch.from_numpy(numpy.stack([numpy.asarray(frame) for frame in chosen])).permute(0, 3, 1, 2).float() / 255
mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.4815, 0.4578, 0.4082), (0.2686, 0.2613, 0.2758)))
tokenizer = Tokenizer.from_file(sys.argv[1] + "/tokenizer.json")
visual = 8 * (1 + (size // model.config.vision_config.patch_size) ** 2)
ids = torch.tensor([tokenizer.encode("USER: " + "<video>" * visual + "\\n" + sys.argv[3] + " ASSISTANT:").ids])
out = model.generate(
    input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values_videos=((pixels - mean) / std)[None],
    max_new_tokens=64, do_sample=False,
)
print(tokenizer.decode(out[0, ids.shape[1]:].tolist()))
"""


@dataclass(frozen=True)
class Start:
    """The same work as a command of each peer, and how the page writes these; `answers`: what they say is the work."""

    name: str
    commands: Mapping[str, Sequence[str]]
    shown: Mapping[str, str]
    answers: bool


def startup_commands(folder: Path, peers: tuple[str, ...]) -> list[Start]:
    """What is timed; the clip that is asked about is drawn into `folder`."""
    clip = _draw(folder)
    ours = [sys.executable, "-m", "filmstrip.cli.main", "ask"]
    theirs = [sys.executable, "-c"]
    question = shlex.quote(_QUESTION)
    helped = Start(
        HELP,
        {OURS: [*ours, "--help"], THEIRS: [*theirs, "import transformers"]},
        {OURS: "filmstrip ask --help", THEIRS: 'python -c "import transformers"'},
        answers=False,
    )
    asked = Start(
        FIRST_ANSWER,
        {
            OURS: [*ours, str(clip), _QUESTION],
            THEIRS: [*theirs, _THEIR_ANSWER, str(resolve("tiny")), str(clip), _QUESTION],
        },
        {
            OURS: f"filmstrip ask {clip.name} {question}",
            THEIRS: f"python -c SCRIPT tiny {clip.name} {question} (from_pretrained, PyAV, Pillow, generate)",
        },
        answers=True,
    )
    return [
        Start(
            start.name,
            {peer: command for peer, command in start.commands.items() if peer in peers},
            {peer: text for peer, text in start.shown.items() if peer in peers},
            start.answers,
        )
        for start in (helped, asked)
    ]


def _draw(folder: Path) -> Path:
    from filmstrip.media.encode import write_video
    from filmstrip.world import draw_clip, sample_clip, split_rng

    path = folder / "clip.mp4"
    write_video(path, draw_clip(sample_clip(split_rng("test", 0), "test"), 256))
    return path


def time_command(command: Sequence[str], threads: int, timeout: float = TIMEOUT) -> tuple[Sample, str]:
    """One run of a command, process start included, and what it printed. Raises `FilmstripError` when it fails."""
    others = OtherWork((os.getpid(),))
    with tempfile.TemporaryFile() as complaints:
        done = subprocess.run(
            [sys.executable, "-S", launcher.__file__, str(timeout), *command],
            stdout=subprocess.PIPE,
            stderr=complaints,
            env=os.environ | {"OMP_NUM_THREADS": str(threads)},
            check=False,
        )
        failed = done.returncode or not done.stdout
        answer: dict[str, Any] = {"code": done.returncode} if failed else json.loads(done.stdout)
        if failed or answer["code"] != 0:
            shown = " ".join(shlex.join(command).split())[:_SHOWN]
            raise FilmstripError(f"{shown} failed, {last_words(complaints, answer['code'])}")
    return Sample(answer["seconds"], others.seconds() / answer["seconds"], answer["peak"]), answer["said"].strip()
