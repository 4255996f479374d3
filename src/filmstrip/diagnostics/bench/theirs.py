"""transformers as a peer, in its default use: `from_pretrained`, `generate`, `forward` with labels."""

from pathlib import Path
from typing import Any, cast

import torch

from filmstrip.checkpoint.header import dtype_name
from filmstrip.checkpoint.read import read_checkpoint
from filmstrip.diagnostics.bench.workloads import (
    STEPS,
    TRAINING_ROWS,
    Runner,
    Work,
    Workload,
    make_inputs,
    random_cache,
    random_ids,
)
from filmstrip.oracle.reference import load_reference, quiet, reference_cache, reference_generate

_IGNORE = -100


class Theirs(Runner):
    """One loaded checkpoint."""

    def __init__(self) -> None:
        quiet()

    def open(self, directory: Path, dtype: torch.dtype) -> dict[str, str]:
        """Load the weights as transformers does, mapped from the file."""
        self.directory, self.dtype = directory, dtype
        self.config = read_checkpoint(directory).config
        self.model: Any = load_reference(directory, dtype=dtype)
        name = dtype_name(dtype)
        return {"compute": name, "kept": name}

    def greedy(self, count: int) -> list[int]:
        """As `Runner.greedy`."""
        inputs = make_inputs(self.config, self.dtype)
        given = {"input_ids": inputs.input_ids, "pixel_values_videos": inputs.videos}
        given["attention_mask"] = torch.ones_like(inputs.input_ids)
        return cast(
            list[int], reference_generate(self.model, given, max_new_tokens=count, eos_token_id=None)[0].tolist()
        )

    def vision(self, _workload: Workload) -> Work:
        """Tower and projector over a clip."""
        videos = make_inputs(self.config, self.dtype).videos

        def run() -> int:
            with torch.inference_mode():
                self.model.model.get_video_features(pixel_values_videos=videos)
            return 1

        return Work(run)

    def prefill(self, _workload: Workload) -> Work:
        """A clip and a question, up to the logits of the last position."""
        inputs = make_inputs(self.config, self.dtype)

        def run() -> int:
            with torch.inference_mode():
                self.model(
                    input_ids=inputs.input_ids, pixel_values_videos=inputs.videos, use_cache=True, logits_to_keep=1
                )
            return 1

        return Work(run)

    def second(self, workload: Workload) -> Work:
        """Nothing is kept from one question to the next, so all is read again."""
        return self.prefill(workload)

    def decode(self, workload: Workload) -> Work:
        """`generate` behind a cache that is full to the context."""
        length = workload.context - 1
        cache = reference_cache(random_cache(self.config, workload.batch, length, self.dtype))
        generator = torch.Generator().manual_seed(2)
        ids_BT = random_ids(self.config, workload.batch, workload.context, generator)
        given = {"input_ids": ids_BT, "attention_mask": torch.ones_like(ids_BT)}

        def before() -> None:
            """Forget the tokens of the last run."""
            cache.crop(length - cache.get_seq_length())

        def run() -> int:
            ids = reference_generate(self.model, given, past_key_values=cache, max_new_tokens=STEPS, eos_token_id=None)
            return int(ids.shape[1])

        return Work(run, before)

    def train(self, _workload: Workload) -> Work:
        """As `Ours.train`, and as it comes: not compiled."""
        model = self.model.float().train()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("_tower." not in name)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-6)
        inputs = make_inputs(self.config, torch.float32, TRAINING_ROWS)
        labels = inputs.input_ids.clone()
        labels[:, : inputs.video_end] = _IGNORE

        def run() -> int:
            optimizer.zero_grad()
            model(input_ids=inputs.input_ids, pixel_values_videos=inputs.videos, labels=labels).loss.backward()
            optimizer.step()
            return 1

        return Work(run)
