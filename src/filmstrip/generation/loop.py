"""The generation loop: an iterator over steps, one token id per row and step.

It is a class so that its user can end a row from outside: stop strings are a matter of text, and this layer sees
only ids.
"""

from collections.abc import Iterator, Sequence

import torch

from filmstrip.cache import KVCache
from filmstrip.config import SamplingConfig
from filmstrip.errors import PromptError
from filmstrip.generation.compiled import CompiledDecoding, compiled_decoding
from filmstrip.generation.fused import FusedDecoding, fused_decoding
from filmstrip.generation.sample import sample_tokens
from filmstrip.generation.step import OnChunk, decode_step, prefill
from filmstrip.models import VideoLlava
from filmstrip.shapes import Float, Int, Tensor


class TokenLoop:
    """Iterate to get the next ids, shape (B,), until every row has ended or `max_new_tokens` are made.

    A row ends with an id of `eos_ids`, which is yielded; after its end a row yields `fill_id`. `prompt_ids` are the
    whole prompt (for the repetition penalty); `x_BTD` the fused embeddings of that part of it which the cache does
    not hold yet. `seeds` are one per row (default: `sampling.seed` for all, so that each row equals the row alone).
    `on_chunk` and `beginning` are for `prefill`, which reads the prompt.

    Raises `PromptError` for a mask that pads on the right, where the new tokens go.
    """

    def __init__(
        self,
        model: VideoLlava,
        cache: KVCache,
        x_BTD: Float[Tensor, "B T D"],
        prompt_ids: Int[Tensor, "B S"],
        sampling: SamplingConfig,
        *,
        eos_ids: tuple[int, ...] = (),
        attention_mask: Int[Tensor, "B S"] | None = None,
        seeds: Sequence[int | None] | None = None,
        on_chunk: OnChunk = lambda done, total: None,
        beginning: int = 0,
    ) -> None:
        _require_left_padding(attention_mask)
        self.model, self.cache, self.sampling = model, cache, sampling
        self.eos_ids = torch.tensor(eos_ids, dtype=torch.long, device=x_BTD.device)
        self.fill_id = eos_ids[0] if eos_ids else model.config.pad_token_id
        self.ended = [False] * x_BTD.shape[0]
        self._x_BTD, self._on_chunk, self._beginning = x_BTD, on_chunk, beginning
        self._mask = attention_mask
        self._fast: CompiledDecoding | FusedDecoding | None = None
        self._seen_BW = _tokens_seen(prompt_ids, attention_mask, model.config.text.vocab_size)
        self._generators = [_generator(seed, x_BTD.device) for seed in seeds or [sampling.seed] * len(self.ended)]

    def end(self, row: int) -> None:
        """End a row from outside (a stop string appeared in its text)."""
        self.ended[row] = True

    def __iter__(self) -> Iterator[Int[Tensor, "B"]]:
        """Make tokens."""
        with torch.inference_mode():
            logits_BW = prefill(self.model, self.cache, self._x_BTD, self._mask, self._on_chunk, self._beginning)
        for step in range(self.sampling.max_new_tokens):
            with torch.inference_mode():
                ids_B = self._choose(logits_BW)
                ended_B = torch.tensor(self.ended, device=ids_B.device)
            yield ids_B.masked_fill(ended_B, self.fill_id)
            self.ended = [
                ended or bool(hit)
                for ended, hit in zip(self.ended, torch.isin(ids_B, self.eos_ids).tolist(), strict=True)
            ]
            if all(self.ended) or step + 1 == self.sampling.max_new_tokens:
                return
            # Ended rows go on with what they chose: nobody sees it, and `fill_id` may lie outside the vocabulary.
            with torch.inference_mode():
                if step == 0:  # an answer of one token does not need it
                    compiled = compiled_decoding(self.model, self.cache) if self.model.compiled else None
                    self._fast = compiled or fused_decoding(self.model, self.cache)
                logits_BW = self._advance(ids_B)

    @property
    def decoding(self) -> str:
        """What makes the tokens after the first: `torch.compile`, `kernel`, or `modules`, the twin of both."""
        if isinstance(self._fast, CompiledDecoding):
            return "torch.compile"
        return "kernel" if isinstance(self._fast, FusedDecoding) and self._fast.agrees else "modules"

    def _choose(self, logits_BW: Tensor) -> Int[Tensor, "B"]:
        ids_B = sample_tokens(logits_BW, self.sampling, self._seen_BW, self._generators)
        self._seen_BW.scatter_(1, ids_B[:, None], True)
        return ids_B

    def _advance(self, ids_B: Tensor) -> Float[Tensor, "B W"]:
        if self._mask is not None:
            self._mask = torch.cat([self._mask, self._mask.new_ones(self._mask.shape[0], 1)], dim=1)
        if self._fast is not None:
            return self._fast(ids_B, self._mask)
        return decode_step(self.model, self.cache, ids_B, self._mask)


def _require_left_padding(attention_mask: Tensor | None) -> None:
    if attention_mask is not None and not bool(attention_mask[:, -1].all()):
        raise PromptError("prompts must be padded on the left: the attention mask ends with 0 in some row")


def _tokens_seen(prompt_ids: Tensor, attention_mask: Tensor | None, vocab_size: int) -> Tensor:
    """Which tokens each row's prompt holds; padding and ids past the vocabulary do not count."""
    real_BT = (prompt_ids >= 0) & (prompt_ids < vocab_size)
    if attention_mask is not None:
        real_BT &= attention_mask.bool()
    counts_BW = torch.zeros(prompt_ids.shape[0], vocab_size, dtype=torch.long, device=prompt_ids.device)
    return counts_BW.scatter_add(1, prompt_ids.where(real_BT, 0), real_BT.long()) > 0


def _generator(seed: int | None, device: torch.device) -> torch.Generator:
    generator = torch.Generator(device=device)
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    return generator
