"""Text: tokenizer, prompt styles, chat templates, incremental detokenisation. Knows no model and no media."""

from filmstrip.text.encode import LabelledIds, tokenize
from filmstrip.text.prompt import Placeholders, Rendered, Source, Turn, render, user_turn
from filmstrip.text.stream import TextStream
from filmstrip.text.tokenizer import Encoded, Tokenizer

__all__ = [
    "Encoded",
    "LabelledIds",
    "Placeholders",
    "Rendered",
    "Source",
    "TextStream",
    "Tokenizer",
    "Turn",
    "render",
    "tokenize",
    "user_turn",
]
