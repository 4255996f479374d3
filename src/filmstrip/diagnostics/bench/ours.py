"""This program as a peer: its own loader, model and loop, as `filmstrip ask` runs them."""

import os
from collections.abc import Iterator
from dataclasses import replace
from itertools import count, islice
from pathlib import Path
from typing import cast

import torch
from torch.nn import functional

from filmstrip.api.load import open_model
from filmstrip.checkpoint.header import dtype_name
from filmstrip.config import SamplingConfig
from filmstrip.diagnostics.bench.workloads import (
    STEPS,
    TRAINING_ROWS,
    Inputs,
    Runner,
    Work,
    Workload,
    make_inputs,
    make_question,
    random_cache,
    random_clip,
    random_ids,
)
from filmstrip.errors import FilmstripError
from filmstrip.generation import TokenLoop
from filmstrip.generation.step import new_cache, prefill
from filmstrip.kernels import find_kernels
from filmstrip.shapes import Int, Tensor


class Ours(Runner):
    """One loaded checkpoint."""

    def open(self, directory: Path, dtype: torch.dtype) -> dict[str, str]:
        """Load the weights, mapped from the file where they need no conversion."""
        self.directory, self.dtype = directory, dtype
        if os.environ.get("FILMSTRIP_KERNELS") != "off":
            find_kernels("wait")
        self.assistant = open_model(directory, device="cpu").load_weights(dtype, compute="auto")
        self.model, self.config = self.assistant.model, self.assistant.config
        self.model.eos_token_ids = ()  # random weights would end an answer anywhere
        self.compute_dtype = self.model.text_tower.compute_dtype
        kept = self.model.kv_dtype or self.compute_dtype
        return {"compute": dtype_name(self.compute_dtype), "kept": dtype_name(kept)}

    def greedy(self, count: int) -> list[int]:
        """As `Runner.greedy`."""
        inputs = self._inputs()
        ids: Int[Tensor, "B new"] = self.model.generate(
            inputs.input_ids, None, inputs.videos, max_new_tokens=count, temperature=0.0
        )
        return cast(list[int], ids[0].tolist())

    def vision(self, _workload: Workload) -> Work:
        """Tower and projector over a clip."""
        videos = self._inputs().videos

        def run() -> int:
            with torch.inference_mode():
                self.model.encode_videos(videos)
            return 1

        return Work(run)

    def prefill(self, _workload: Workload) -> Work:
        """A clip and a question, up to the logits of the last position."""
        inputs = self._inputs()

        def run() -> int:
            with torch.inference_mode():
                x_BTD = self.model.embed(inputs.input_ids, None, inputs.videos)
                prefill(self.model, new_cache(self.model, 1, x_BTD.shape[1]), x_BTD)
            return 1

        return Work(run)

    def decode(self, workload: Workload) -> Work:
        """Greedy tokens behind a cache that is full to the context."""
        cache = new_cache(self.model, workload.batch, workload.context + STEPS)
        pairs = random_cache(self.config, workload.batch, workload.context, self.dtype)
        for layer, (k_BKTH, v_BKTH) in enumerate(pairs):
            cache.write(layer, k_BKTH, v_BKTH)
        generator = torch.Generator().manual_seed(2)
        ids_BT = random_ids(self.config, workload.batch, workload.context, generator)
        sampling = SamplingConfig(max_new_tokens=STEPS + 1, temperature=0.0)
        tokens: Iterator[Tensor] = iter(())

        def before() -> None:
            """Read the prompt's last token again: that gives the first of the answer, and it is no step."""
            nonlocal tokens
            cache.length = workload.context - 1
            with torch.inference_mode():
                x_BTD = self.model.text_tower.token_embedding(ids_BT[:, -1:])
            tokens = iter(TokenLoop(self.model, cache, x_BTD, ids_BT, sampling))
            next(tokens)

        return Work(lambda: len(list(islice(tokens, STEPS))), before)

    def second(self, _workload: Workload) -> Work:
        """`Assistant.ask` about a clip that it was asked about before: pixels, their hash, what is remembered, words.

        Raises `FilmstripError` where the clip is not remembered.
        """
        clip, numbers = random_clip(), count()

        def ask() -> int:
            return self.assistant.ask(clip, make_question(next(numbers)), max_new_tokens=1).prefix_reused

        def run() -> int:
            ask()
            return 1

        ask()
        if not ask():
            raise FilmstripError("keys and values of the video are more than is remembered in memory")
        return Work(run)

    def train(self, workload: Workload) -> Work:
        """Projector and text tower learn, the vision towers rest, as in Video-LLaVA's second stage."""
        model = self.model.float().train()
        model.requires_grad_(True)
        for tower in (model.image_tower, model.video_tower):
            tower.requires_grad_(False)
        if workload.compiled:
            for block in (*model.video_tower.blocks, *model.text_tower.blocks):
                block.compile()
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-6)
        inputs = make_inputs(self.config, torch.float32, TRAINING_ROWS)
        targets = inputs.question_ids.flatten()

        def run() -> int:
            optimizer.zero_grad()
            x_BTD = model.embed(inputs.input_ids, None, inputs.videos)
            hidden_BTD = model.decode(x_BTD, last=inputs.question_ids.shape[1] + 1)
            logits = model.text_tower.logits(hidden_BTD[:, :-1]).flatten(0, 1)
            functional.cross_entropy(logits, targets).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            return 1

        return Work(run)

    def _inputs(self) -> Inputs:
        """The same pixels as the others get, in the precision of the arithmetic."""
        inputs = make_inputs(self.config, self.dtype)
        return replace(inputs, videos=inputs.videos.to(self.compute_dtype))
