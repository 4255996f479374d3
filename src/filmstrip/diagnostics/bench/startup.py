"""Commands that are timed from the start of the process to its end."""

import sys
from pathlib import Path

from filmstrip.checkpoint.resolve import resolve
from filmstrip.diagnostics.bench.peer import OURS, THEIRS

_QUESTION = "How many shapes are there?"

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


def startup_commands(folder: Path, peers: tuple[str, ...]) -> dict[str, dict[str, list[str]]]:
    """Commands by workload and peer; the clip that is asked about is drawn into `folder`."""
    clip = _draw(folder)
    ours = str(Path(sys.executable).with_name("filmstrip"))
    commands = {
        "start-up, help": {OURS: [ours, "ask", "--help"], THEIRS: [sys.executable, "-c", "import transformers"]},
        "first answer of the embedded model, process start included": {
            OURS: [ours, "ask", str(clip), _QUESTION],
            THEIRS: [sys.executable, "-c", _THEIR_ANSWER, str(resolve("tiny")), str(clip), _QUESTION],
        },
    }
    return {name: {peer: command for peer, command in pair.items() if peer in peers} for name, pair in commands.items()}


def _draw(folder: Path) -> Path:
    from filmstrip.media.encode import write_video
    from filmstrip.world import draw_clip, sample_clip, split_rng

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "clip.mp4"
    write_video(path, draw_clip(sample_clip(split_rng("test", 0), "test"), 256))
    return path
