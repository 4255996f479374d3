"""The tokenizer against the model: every token has a row, and the placeholders are what both sides take them for."""

from filmstrip.checkpoint.defaults import GENERATION_FILE
from filmstrip.checkpoint.towers import CONFIG_FILE
from filmstrip.diagnostics.doctor.findings import Findings, counted
from filmstrip.diagnostics.doctor.settings import Settings
from filmstrip.text.tokenizer import Tokenizer
from filmstrip.text.tokenizer_files import TOKENIZER_FILE

SPELLINGS = {"image": "<image>", "video": "<video>"}


def check_vocabulary(settings: Settings, rows: int | None, findings: Findings) -> None:
    """Compare ids with the `rows` of the embedding (None: unknown).

    The original release has no rows for its placeholders: their positions are overwritten, nothing is looked up, and
    their ids lie past the vocabulary by design.
    """
    tokenizer, model = settings.tokenizer, settings.model
    if rows is not None and tokenizer is not None:
        _check_rows(tokenizer, rows, findings)
    if rows is not None:
        _check_special(settings, rows, findings)
    if model is None or settings.original:
        return
    ids = {"image": model.image_token_id}
    if model.video_token_id is not None:
        ids["video"] = model.video_token_id
    for kind, token_id in ids.items():
        if rows is not None and token_id >= rows:
            what = f"the id of the {kind} placeholder is {token_id}, the embedding has {counted(rows, 'row')}"
            findings.add("placeholder-outside-vocabulary", CONFIG_FILE, what)
        if tokenizer is not None:
            _check_placeholder(tokenizer, kind, token_id, findings)


def _check_rows(tokenizer: Tokenizer, rows: int, findings: Findings) -> None:
    if tokenizer.vocab_size > rows:
        what = f"the tokenizer has ids up to {tokenizer.vocab_size - 1}, the embedding {counted(rows, 'row')}"
        findings.add("vocabulary-too-small", TOKENIZER_FILE, what)
    elif tokenizer.vocab_size < rows:
        what = f"{rows - tokenizer.vocab_size} of {counted(rows, 'row')} of the embedding have no token"
        findings.add("rows-without-token", TOKENIZER_FILE, what)


def _check_special(settings: Settings, rows: int, findings: Findings) -> None:
    generation, model = settings.generation, settings.model
    ids: list[tuple[str, int | None]] = []
    if generation is not None:
        ids += [("bos_token_id", generation.bos_id), ("pad_token_id", generation.pad_id)]
        ids += [("eos_token_id", token_id) for token_id in generation.eos_ids]
    if model is not None:
        ids.append(("pad_token_id", model.pad_token_id))
    for key, token_id in dict.fromkeys(ids):
        if token_id is not None and token_id >= rows:
            what = f"{key} is {token_id}, the embedding has {counted(rows, 'row')}"
            findings.add("special-id-outside-vocabulary", GENERATION_FILE, what)


def _check_placeholder(tokenizer: Tokenizer, kind: str, token_id: int, findings: Findings) -> None:
    spelling = SPELLINGS[kind]
    token, named = tokenizer.id_to_token(token_id), tokenizer.token_to_id(spelling)
    if token == spelling:
        return
    if token is None:
        remedy = None if named is None else f"The tokenizer has {spelling} at {named}: set {kind}_token_index to it."
        what = f"config.json puts the {kind} placeholder at {token_id}, where the tokenizer has no token"
        findings.add("placeholder-missing", TOKENIZER_FILE, what, remedy=remedy)
    elif named is not None or token_id not in tokenizer.special_ids or token_id in _with_a_role(tokenizer):
        there = f"; {spelling} has id {named}" if named is not None else ""
        what = f"config.json puts the {kind} placeholder at {token_id}, which is {token[:80]!r} there{there}"
        findings.add("placeholder-is-another-token", TOKENIZER_FILE, what)


def _with_a_role(tokenizer: Tokenizer) -> set[int | None]:
    """Special tokens that mean something in a text already; one without a role may well be a placeholder's."""
    return {tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.unk_id}
