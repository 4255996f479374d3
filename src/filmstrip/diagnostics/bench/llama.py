"""llama.cpp as a peer, through llama-cpp-python, where that is installed: the text tower alone, decoding alone."""

import ctypes
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import torch

from filmstrip.checkpoint.gguf import gguf_text_config
from filmstrip.checkpoint.gguf_file import read_gguf
from filmstrip.diagnostics.bench.llama_file import GGUF_FILE
from filmstrip.diagnostics.bench.workloads import STEPS, Runner, Work, Workload
from filmstrip.errors import FilmstripError

_KEPT = "float16"  # keys and values, as llama.cpp keeps them unless told otherwise
_CHUNK = 512  # tokens of a prompt at once


class Llama(Runner):
    """One GGUF file loaded, mapped as llama.cpp does by default, and at most one context of it."""

    def __init__(self) -> None:
        self._quiet = llama_cpp.llama_log_callback(lambda _level, _text, _data: None)
        llama_cpp.llama_log_set(self._quiet, ctypes.c_void_p())
        llama_cpp.llama_backend_init()
        self.model: Any = None
        self.context: Any = None

    def open(self, directory: Path, dtype: torch.dtype) -> dict[str, str]:
        """Load the file in `directory`. Raises `FilmstripError` when llama.cpp does not take it."""
        self.close()
        self.directory, self.dtype = directory, dtype
        path = directory / GGUF_FILE
        self.vocab_size = gguf_text_config(read_gguf(path)).vocab_size
        self.model = llama_cpp.llama_model_load_from_file(bytes(path), llama_cpp.llama_model_default_params())
        if not self.model:
            raise FilmstripError(f"llama.cpp does not load {path}")
        return {"compute": "float32", "kept": _KEPT}

    def greedy(self, count: int) -> list[int]:
        """Not asked for: it has no vision towers."""
        raise NotImplementedError

    def decode(self, workload: Workload) -> Work:
        """Greedy tokens of `batch` sequences behind a prompt of `context` random ids, which is read once."""
        self._new_context(workload.batch, workload.context + STEPS)
        ids = np.random.default_rng(2).integers(3, self.vocab_size, workload.context).tolist()
        prompt = [(token, place, 0) for place, token in enumerate(ids[:-1])]
        for start in range(0, len(prompt), _CHUNK):
            self._step(prompt[start : start + _CHUNK], outputs=1)
        memory = llama_cpp.llama_get_memory(self.context)
        for row in range(1, workload.batch):
            llama_cpp.llama_memory_seq_cp(memory, 0, row, -1, -1)
        tokens: list[int] = []

        def step(position: int) -> None:
            nonlocal tokens
            placed = [(token, position, row) for row, token in enumerate(tokens)]
            tokens = [int(row.argmax()) for row in self._step(placed, outputs=len(placed))]

        def before() -> None:
            """Read the prompt's last token again: that gives the first of the answer, and it is no step."""
            nonlocal tokens
            for row in range(workload.batch):
                llama_cpp.llama_memory_seq_rm(memory, row, workload.context - 1, -1)
            tokens = [ids[-1]] * workload.batch
            step(workload.context - 1)

        def run() -> int:
            for position in range(workload.context, workload.context + STEPS):
                step(position)
            return STEPS

        return Work(run, before)

    def logits(self, ids: list[int]) -> np.ndarray:
        """Those behind each of `ids`, shape (T, V)."""
        self._new_context(1, len(ids))
        return np.stack(self._step([(token, place, 0) for place, token in enumerate(ids)], outputs=len(ids)))

    def close(self) -> None:
        """Let go of the context and the file."""
        self._free_context()
        if self.model:
            llama_cpp.llama_model_free(self.model)
        self.model = None

    def _new_context(self, rows: int, slots: int) -> None:
        self._free_context()
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_seq_max, params.kv_unified = rows * slots, rows, False
        params.n_batch = params.n_ubatch = _CHUNK
        params.n_threads = params.n_threads_batch = torch.get_num_threads()
        # Without it llama.cpp decodes faster on CPUs.
        params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        if not self.context:
            raise FilmstripError(f"llama.cpp makes no context of {rows} rows of {slots} tokens")

    def _free_context(self) -> None:
        if self.context:
            llama_cpp.llama_free(self.context)
        self.context = None

    def _step(self, placed: list[tuple[int, int, int]], outputs: int) -> list[np.ndarray]:
        """Read (token, position, sequence)s; logits of the last `outputs` of them, each of shape (V,)."""
        batch = llama_cpp.llama_batch_init(len(placed), 0, 1)
        try:
            batch.n_tokens = len(placed)
            for index, (token, position, row) in enumerate(placed):
                batch.token[index], batch.pos[index] = token, position
                batch.n_seq_id[index], batch.seq_id[index][0] = 1, row
                batch.logits[index] = index >= len(placed) - outputs
            if llama_cpp.llama_decode(self.context, batch) != 0:
                raise FilmstripError("llama.cpp could not read the tokens")
            asked = range(len(placed) - outputs, len(placed))
            found = [llama_cpp.llama_get_logits_ith(self.context, index) for index in asked]
            return [np.ctypeslib.as_array(row, shape=(self.vocab_size,)).copy() for row in found]
        finally:
            llama_cpp.llama_batch_free(batch)
