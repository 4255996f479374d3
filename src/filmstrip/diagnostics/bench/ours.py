"""This program as a peer: its own loader, model and loop, as `filmstrip ask` runs them."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import cast

import torch
from torch.nn import functional

from filmstrip.checkpoint.load import load_weights
from filmstrip.checkpoint.read import read_checkpoint
from filmstrip.config import SamplingConfig
from filmstrip.diagnostics.bench.workloads import (
    STEPS,
    TRAINING_ROWS,
    Runner,
    Workload,
    make_inputs,
    random_cache,
    random_ids,
)
from filmstrip.generation import TokenLoop, VideoLlavaForGeneration
from filmstrip.generation.step import new_cache, prefill
from filmstrip.kernels import find_kernels
from filmstrip.models.weightless import weightless
from filmstrip.models.wide import set_compute
from filmstrip.shapes import Int, Tensor


class Ours(Runner):
    """One loaded checkpoint."""

    def open(self, directory: Path, dtype: torch.dtype) -> None:
        """Load the weights, mapped from the file where they need no conversion."""
        self.directory, self.dtype = directory, dtype
        checkpoint = read_checkpoint(directory)
        with weightless():
            self.model = VideoLlavaForGeneration(checkpoint.config)
        load_weights(self.model, checkpoint, dtype=dtype)
        self.model.eval().requires_grad_(False)
        set_compute(self.model, "auto", dtype, torch.device("cpu"))
        if os.environ.get("FILMSTRIP_KERNELS") != "off":
            find_kernels("wait")
        self.config = checkpoint.config

    def greedy(self, count: int) -> list[int]:
        """As `Runner.greedy`."""
        inputs = make_inputs(self.config, self.dtype)
        ids: Int[Tensor, "B new"] = self.model.generate(
            inputs.input_ids, None, inputs.videos, max_new_tokens=count, temperature=0.0
        )
        return cast(list[int], ids[0].tolist())

    def vision(self, _workload: Workload) -> Callable[[], int]:
        """Tower and projector over a clip."""
        videos = make_inputs(self.config, self.dtype).videos

        def run() -> int:
            with torch.inference_mode():
                self.model.encode_videos(videos)
            return 1

        return run

    def prefill(self, _workload: Workload) -> Callable[[], int]:
        """A clip and a question, up to the logits of the last position."""
        inputs = make_inputs(self.config, self.dtype)

        def run() -> int:
            with torch.inference_mode():
                x_BTD = self.model.embed(inputs.input_ids, None, inputs.videos)
                prefill(self.model, new_cache(self.model, 1, x_BTD.shape[1]), x_BTD)
            return 1

        return run

    def decode(self, workload: Workload) -> Callable[[], int]:
        """Greedy tokens behind a cache that is full to the context."""
        cache = new_cache(self.model, workload.batch, workload.context + STEPS)
        for layer, (k_BKTH, v_BKTH) in enumerate(
            random_cache(self.config, workload.batch, workload.context, self.dtype)
        ):
            cache.write(layer, k_BKTH, v_BKTH)
        generator = torch.Generator().manual_seed(2)
        ids_BT = random_ids(self.config, workload.batch, workload.context, generator)
        sampling = SamplingConfig(max_new_tokens=STEPS, temperature=0.0)

        def run() -> int:
            cache.length = workload.context - 1  # the last token of the context is read again, and gives the first
            with torch.inference_mode():
                x_BTD = self.model.text_tower.token_embedding(ids_BT[:, -1:])
            return len(list(TokenLoop(self.model, cache, x_BTD, ids_BT, sampling)))

        return run

    def second(self, _workload: Workload) -> Callable[[], int]:
        """The cache holds the video from the question before; this one's words are read behind it."""
        inputs = make_inputs(self.config, self.dtype)
        cache = new_cache(self.model, 1, inputs.input_ids.shape[1] + 1)
        with torch.inference_mode():
            x_BTD = self.model.embed(inputs.input_ids, None, inputs.videos)
            prefill(self.model, cache, x_BTD)
        sampling = SamplingConfig(max_new_tokens=1, temperature=0.0)

        def run() -> int:
            cache.truncate(inputs.video_end)
            with torch.inference_mode():
                x_BTD = self.model.embed(inputs.question_ids)
            return len(list(TokenLoop(self.model, cache, x_BTD, inputs.input_ids, sampling)))

        return run

    def train(self, _workload: Workload) -> Callable[[], int]:
        """Projector and text tower learn, the vision towers rest, as in Video-LLaVA's second stage."""
        model = self.model.float().train()
        model.requires_grad_(True)
        for tower in (model.image_tower, model.video_tower):
            tower.requires_grad_(False)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-6)
        inputs = make_inputs(self.config, torch.float32, TRAINING_ROWS)
        targets = inputs.question_ids.flatten()

        def run() -> int:
            optimizer.zero_grad()
            x_BTD = model.embed(inputs.input_ids, None, inputs.videos)
            hidden_BTD = model.decode(x_BTD)[:, inputs.video_end - 1 : -1]
            logits = model.text_tower.logits(hidden_BTD).flatten(0, 1)
            functional.cross_entropy(logits, targets).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            return 1

        return run
