"""A vocabulary made larger or smaller: rows of the embedding and the head, and the tokenizer's files.

New rows are the mean of the existing ones: deterministic, and as a row of the head never the most likely token (its
logit is the mean of all logits). transformers' conversion draws them at random, so they differ from run to run there.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from filmstrip.checkpoint.write import LazyTensor, json_bytes
from filmstrip.errors import CheckpointError
from filmstrip.shapes import Float, Tensor
from filmstrip.text.tokenizer import Tokenizer
from filmstrip.text.tokenizer_files import FileToken, TokenizerFiles, parse_object, read_tokenizer_files, token_text

IMAGE_TOKEN, VIDEO_TOKEN, PAD_TOKEN = "<image>", "<video>", "<pad>"
MULTIPLE = 64  # rows of an embedding, for the sake of matrix kernels; 32,003 tokens have 32,064
CHUNK_ROWS = 4096
EMBEDDING, HEAD = "token_embedding.weight", "lm_head.weight"  # of `models.decoder.Decoder`


@dataclass(frozen=True)
class ExtendedVocabulary:
    """Where the added tokens stand, how many rows there are now, and the tokenizer's files that say so."""

    image_id: int
    video_id: int
    pad_id: int
    size: int
    added: tuple[str, ...]
    files: Mapping[str, bytes]

    @property
    def notes(self) -> tuple[str, ...]:
        """What was added, for people."""
        if not self.added:
            return ()
        return (f"added to the vocabulary: {', '.join(self.added)}; each new row is the mean of the old ones",)


def extend_vocabulary(directory: Path, rows: int, *, pad_token: str | None = None) -> ExtendedVocabulary:
    """Give the tokenizer of `directory` `<image>`, `<video>` and a padding token, behind its vocabulary.

    Tokens it has already are kept where they are. `pad_token` None: its own, unless that ends texts too (a batch could
    not tell the two apart), else `<pad>`. `rows` is the present size of the embedding; the new one is a multiple of 64
    if it must grow, and ids that were padding before are taken into use first. Raises `CheckpointError` when the
    tokenizer has more tokens than the embedding has rows.
    """
    tokenizer, files = Tokenizer.from_directory(directory), read_tokenizer_files(directory)
    if tokenizer.vocab_size > rows:
        raise CheckpointError(
            f"{directory}: the tokenizer has {tokenizer.vocab_size:,} tokens, the embedding {rows:,} rows"
        )
    own = tokenizer.special_tokens.get("pad_token")
    pad = pad_token or (own if own and own != tokenizer.special_tokens.get("eos_token") else PAD_TOKEN)
    ids: dict[str, int] = {}
    added: list[str] = []
    for token in (IMAGE_TOKEN, VIDEO_TOKEN, pad):
        known = tokenizer.token_to_id(token)
        if known is None:
            known = tokenizer.vocab_size + len(added)
            added.append(token)
        ids[token] = known
    needed = max(rows, *(token_id + 1 for token_id in ids.values()))
    size = rows if needed == rows else rounded_up(needed)
    new = [FileToken(token, ids[token], special=True, origin="tokenizer.json") for token in added]
    return ExtendedVocabulary(
        ids[IMAGE_TOKEN], ids[VIDEO_TOKEN], ids[pad], size, tuple(added), _with_tokens(files, new, pad)
    )


def rounded_up(rows: int) -> int:
    """The next multiple of `MULTIPLE`."""
    return -(-rows // MULTIPLE) * MULTIPLE


def _with_tokens(files: TokenizerFiles, tokens: Iterable[FileToken], pad: str) -> dict[str, bytes]:
    entries = [token.to_json() for token in tokens]
    tokenizer = dict(files.tokenizer)
    tokenizer["added_tokens"] = [*(tokenizer.get("added_tokens") or []), *entries]
    config = files.config | {"pad_token": pad, "padding_side": "left", "processor_class": "VideoLlavaProcessor"}
    if isinstance(config.get("added_tokens_decoder"), dict):
        flags = [(str(entry["id"]), {key: entry[key] for key in entry if key != "id"}) for entry in entries]
        config["added_tokens_decoder"] = config["added_tokens_decoder"] | dict(flags)
    changed = {"tokenizer.json": tokenizer, "tokenizer_config.json": config}
    if "special_tokens_map.json" in files.raw:
        changed["special_tokens_map.json"] = files.special_map | {"pad_token": pad}
    if "added_tokens.json" in files.raw:
        changed["added_tokens.json"] = files.added_map | {entry["content"]: entry["id"] for entry in entries}
    return {name: json_bytes(content) for name, content in changed.items()}


def without_tokens(files: Mapping[str, bytes], first_id: int, pad: str | None) -> dict[str, bytes]:
    """The tokenizer's files without the added tokens from id `first_id` on; `pad` is the padding token instead."""
    parsed = {name: parse_object(content, Path(name)) for name, content in files.items()}
    tokenizer, config = parsed["tokenizer.json"], parsed.get("tokenizer_config.json", {})
    kept = [entry for entry in tokenizer.get("added_tokens") or [] if entry["id"] < first_id]
    dropped = {entry["content"] for entry in tokenizer.get("added_tokens") or [] if entry["id"] >= first_id}
    parsed["tokenizer.json"] = tokenizer | {"added_tokens": kept}
    decoder = config.get("added_tokens_decoder")
    if isinstance(decoder, dict):
        config["added_tokens_decoder"] = {key: entry for key, entry in decoder.items() if int(key) < first_id}
    for content in (config, parsed.get("special_tokens_map.json", {})):
        for key in [key for key, value in content.items() if key.endswith("_token") and token_text(value) in dropped]:
            del content[key]
        if pad is not None and "pad_token" not in content and content:
            content["pad_token"] = pad
    config.pop("processor_class", None)
    if "added_tokens.json" in parsed:
        parsed["added_tokens.json"] = {
            key: value
            for key, value in parsed["added_tokens.json"].items()
            if isinstance(value, int) and value < first_id
        }
    return {name: json_bytes(content) for name, content in parsed.items()}


def resize_rows(tensor: LazyTensor, rows: int) -> LazyTensor:
    """The first `rows` rows of a matrix, or all of them and their mean as often as needed."""
    have = tensor.shape[0]
    if rows == have:
        return tensor
    shape = (rows, *tensor.shape[1:])
    if rows < have:
        return replace(tensor, shape=shape, read=lambda: tensor.read()[:rows])
    return replace(tensor, shape=shape, read=lambda: with_mean_rows(tensor.read(), rows))


def with_mean_rows(matrix: Float[Tensor, "rows D"], rows: int) -> Float[Tensor, "more D"]:
    """`matrix` with the mean of its rows (summed in float64) appended up to `rows` rows."""
    total = torch.zeros(matrix.shape[1], dtype=torch.float64)
    for first in range(0, len(matrix), CHUNK_ROWS):
        total += matrix[first : first + CHUNK_ROWS].to(torch.float64).sum(dim=0)
    grown = torch.empty((rows, matrix.shape[1]), dtype=matrix.dtype)
    grown[: len(matrix)] = matrix
    grown[len(matrix) :] = (total / len(matrix)).to(matrix.dtype)
    return grown
