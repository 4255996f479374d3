"""From a rendered prompt to token ids, each with the label of the text it came from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from filmstrip.config import MediaKind
from filmstrip.errors import CheckpointError
from filmstrip.text.prompt import Placeholders, Rendered
from filmstrip.text.tokenizer import Encoded, Tokenizer


@dataclass(frozen=True)
class LabelledIds:
    """Token ids before placeholders are expanded, and for each the label of its source."""

    ids: tuple[int, ...]
    labels: tuple[str, ...]


def tokenize(
    rendered: Rendered,
    tokenizer: Tokenizer,
    media_ids: Mapping[MediaKind, int],
    *,
    placeholders: Placeholders | None = None,
    split_at_media: bool = False,
    add_special: bool = True,
) -> LabelledIds:
    """Tokenise a prompt and attribute each token to its source.

    The text is tokenised as one, so that merges cross the borders of sources exactly as in transformers. With
    `split_at_media` it is cut at the placeholders and each piece is tokenised alone without its BOS, as the original's
    `tokenizer_image_token` does; a LLaMA tokenizer then starts every piece with a space token (29871), and the
    tokenizer need not know the placeholders. A token belongs to the source of its first character that is not blank.

    Raises `CheckpointError` when the whole text is asked for and the tokenizer has no token for a placeholder in it.
    """
    places = placeholders or Placeholders()
    if split_at_media:
        return _tokenize_pieces(rendered, tokenizer, media_ids, places, add_special)
    for kind, token_id in media_ids.items():
        found = tokenizer.token_to_id(places.of(kind))
        if places.of(kind) in rendered.text and found != token_id:
            raise CheckpointError(
                f"the {kind} placeholder {places.of(kind)!r} should be token {token_id} (config.json), "
                + ("but the tokenizer does not know it" if found is None else f"but it is token {found}")
            )
    return _label(rendered, tokenizer.encode(rendered.text, add_special=add_special), 0)


def _tokenize_pieces(
    rendered: Rendered,
    tokenizer: Tokenizer,
    media_ids: Mapping[MediaKind, int],
    places: Placeholders,
    add_special: bool,
) -> LabelledIds:
    ids: list[int] = list(tokenizer.prefix_ids) if add_special else []
    labels = ["template"] * len(ids)
    kinds: dict[str, MediaKind] = {places.of(kind): kind for kind in media_ids}
    cut = re.compile("|".join(re.escape(place) for place in kinds))
    position = 0
    for match in [*cut.finditer(rendered.text), None]:
        end = len(rendered.text) if match is None else match.start()
        if end > position:
            encoded = tokenizer.encode(rendered.text[position:end], add_special=False)
            piece = _label(rendered, encoded, position)
            ids += piece.ids
            labels += piece.labels
        if match is not None:
            ids.append(media_ids[kinds[match.group()]])
            labels.append(rendered.label_at(match.start()))
            position = match.end()
    if add_special:
        ids += tokenizer.suffix_ids
        labels += ["template"] * len(tokenizer.suffix_ids)
    return LabelledIds(tuple(ids), tuple(labels))


def _label(rendered: Rendered, encoded: Encoded, shift: int) -> LabelledIds:
    labels = []
    for start, end in encoded.offsets:
        if start == end:
            labels.append("template")
            continue
        words = rendered.text[start + shift : end + shift]
        blanks = len(words) - len(words.lstrip())
        labels.append(rendered.label_at(start + shift + (blanks if blanks < len(words) else 0)))
    return LabelledIds(tuple(encoded.ids), tuple(labels))
