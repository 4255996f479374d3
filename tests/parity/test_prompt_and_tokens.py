"""Token ids, chat templates and placeholder expansion against transformers."""

import inspect
import json
import shutil
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, VideoLlavaImageProcessor, VideoLlavaProcessor

from filmstrip.config import ModelConfig, Preset, VisionConfig, get_preset
from filmstrip.inputs import Processor
from filmstrip.media import Clip
from filmstrip.media.transform import PixelSpec
from filmstrip.testing.tiny import CHAT_TEMPLATE
from filmstrip.text import Tokenizer as OurTokenizer
from filmstrip.text import Turn, render, user_turn
from filmstrip.text.prompt import VICUNA_SYSTEM

SPECIAL = ("<unk>", "<s>", "</s>")
MEDIA = ("<image>", "<video>", "<pad>")

TEXTS = [
    "",
    " ",
    "Hello world",
    "  two  spaces   three ",
    "line\nbreak\n\n two\tTab\r\n",
    "USER: <video>\nWhy is this video funny? ASSISTANT:",
    "USER: <image>\n<image> \n<video>Why? ASSISTANT: Because.</s>USER: next<s>",
    "<s>already there</s>",
    "naïve café, 日本語のテキスト, мир, שלום 👩‍👩‍👧 \U0001f3f3\ufe0f",
    "▁ already a mark ▁▁",
    "<unk> <0x41> <imag <video",
    "a" * 300,
    "def f(x):\n    return {'a': [1, 2.5, None]}  # comment\n",
]


@pytest.fixture(scope="module")
def trained() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """A LLaMA-style vocabulary: specials, 256 byte tokens, then pieces learnt from the standard library's sources."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    corpus = inspect.getsource(textwrap).splitlines() + inspect.getsource(inspect).splitlines() + TEXTS
    trainer = trainers.BpeTrainer(vocab_size=1200, show_progress=False)
    tokenizer.train_from_iterator((line for line in corpus if "<" not in line), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    pieces = sorted(model["vocab"], key=lambda piece: model["vocab"][piece])
    ordered = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    return {piece: index for index, piece in enumerate(ordered)}, [tuple(pair) for pair in model["merges"]]


def write_llama(directory: Path, trained: Any, *, old_file: bool = False, **config: Any) -> int:
    """Write a LLaMA tokenizer directory; returns the id of `<image>`, which `<video>` and `<pad>` follow.

    `old_file` stores the normaliser form that transformers 4 wrote, which transformers 5 ignores.
    """
    vocab, merges = trained
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if old_file:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL])
    if not config.pop("media_in_config", False):
        tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in MEDIA])
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    base = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    content = {"pad_token": "<pad>", **base, **config}
    # CRLF line ends, as in the hub's files.
    text = json.dumps(content, indent=2).replace("\n", "\r\n")
    (directory / "tokenizer_config.json").write_bytes(text.encode())
    return len(vocab)


def added_tokens_decoder(first: int) -> dict[str, Any]:
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    names = {**dict(enumerate(SPECIAL)), **{first + index: token for index, token in enumerate(MEDIA)}}
    return {str(token_id): {"content": content, **flags} for token_id, content in names.items()}


@pytest.mark.parametrize("old_file", [False, True], ids=["metaspace-file", "normalizer-file"])
@pytest.mark.parametrize(
    "config",
    [
        {"legacy": False},
        {"legacy": True},
        {},
        {"legacy": None, "add_prefix_space": None},
        {"legacy": False, "add_prefix_space": False},
        {"legacy": True, "add_prefix_space": True, "tokenizer_class": "LlamaTokenizerFast"},
        {"tokenizer_class": "PreTrainedTokenizerFast"},
        {"tokenizer_class": "TokenizersBackend"},
        {"legacy": False, "split_special_tokens": True},
    ],
    ids=str,
)
def test_ids_and_text_equal_autotokenizer(tmp_path: Path, trained: Any, config: dict[str, Any], old_file: bool) -> None:
    write_llama(tmp_path, trained, old_file=old_file, **config)
    theirs, ours = AutoTokenizer.from_pretrained(tmp_path), OurTokenizer.from_directory(tmp_path)
    for text in TEXTS:
        expected = theirs(text)["input_ids"]
        assert ours.encode(text).ids == expected, text
        assert ours.encode(text, add_special=False).ids == theirs(text, add_special_tokens=False)["input_ids"], text
        for skip in (True, False):
            assert ours.decode(expected, skip_special=skip) == theirs.decode(expected, skip_special_tokens=skip), text
    assert (ours.bos_id, ours.eos_id, ours.unk_id) == (theirs.bos_token_id, theirs.eos_token_id, theirs.unk_token_id)
    assert ours.pad_id == theirs.pad_token_id
    assert ours.vocab_size == len(theirs)


def test_legacy_flag_changes_the_ids_after_media(tmp_path: Path, trained: Any) -> None:
    """So that the comparison above cannot pass by ignoring the flag (sheet 5.3)."""
    ids = {}
    for legacy in (False, True):
        write_llama(tmp_path / str(legacy), trained, legacy=legacy)
        ids[legacy] = OurTokenizer.from_directory(tmp_path / str(legacy)).encode("USER: <video>\nWhy?").ids
    space = trained[0]["▁"]
    after = ids[True].index(trained[0].get("▁\n", space))
    assert ids[True] != ids[False]
    assert len(ids[True]) == len(ids[False]) + 1
    assert ids[True][after] == space


@pytest.mark.parametrize("placement", ["config", "added_tokens.json"])
def test_tokens_missing_in_tokenizer_json_are_added_at_their_ids(tmp_path: Path, trained: Any, placement: str) -> None:
    first = len(trained[0])
    extra = {"added_tokens_decoder": added_tokens_decoder(first)} if placement == "config" else {}
    write_llama(tmp_path, trained, legacy=False, media_in_config=True, **extra)
    if placement == "added_tokens.json":
        table = {token: first + index for index, token in enumerate(MEDIA)}
        (tmp_path / "added_tokens.json").write_text(json.dumps(table))
    theirs, ours = AutoTokenizer.from_pretrained(tmp_path), OurTokenizer.from_directory(tmp_path)
    assert [ours.token_to_id(token) for token in MEDIA] == [first, first + 1, first + 2]
    assert theirs.convert_tokens_to_ids(list(MEDIA)) == [first, first + 1, first + 2]
    for text in TEXTS:
        expected = theirs(text)["input_ids"]
        assert ours.encode(text).ids == expected, text
        assert ours.decode(expected) == theirs.decode(expected, skip_special_tokens=True), text


def test_special_tokens_map_of_old_directories(tmp_path: Path, trained: Any) -> None:
    write_llama(tmp_path, trained, legacy=False)
    config = json.loads((tmp_path / "tokenizer_config.json").read_bytes())
    del config["pad_token"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    pad = {"content": "<pad>", "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"pad_token": pad}))
    theirs, ours = AutoTokenizer.from_pretrained(tmp_path), OurTokenizer.from_directory(tmp_path)
    assert ours.pad_id == theirs.pad_token_id == len(trained[0]) + 2


@pytest.mark.parametrize("stored", [True, False], ids=["with-post-processor", "without"])
@pytest.mark.parametrize(
    "flags", [{}, {"add_bos_token": True}, {"add_bos_token": False, "add_eos_token": True}], ids=str
)
def test_post_processor_decides_about_bos(tmp_path: Path, trained: Any, flags: dict[str, Any], stored: bool) -> None:
    write_llama(tmp_path, trained, legacy=False, **flags)
    if not stored:
        content = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
        content["post_processor"] = None
        (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    theirs, ours = AutoTokenizer.from_pretrained(tmp_path), OurTokenizer.from_directory(tmp_path)
    assert ours.encode("Hello").ids == theirs("Hello")["input_ids"]
    assert ours.add_bos == stored
    contradicted = flags.get("add_bos_token", stored) != stored or flags.get("add_eos_token", False)
    assert bool(ours.warnings) == contradicted


def test_byte_level_file_under_the_llama_name(tmp_path: Path) -> None:
    """LLaMA 3 style: transformers notices the byte-level file and takes it as it is."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=["<s>", "</s>"]
    )
    tokenizer.train_from_iterator(inspect.getsource(textwrap).splitlines(), trainer)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    config = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    theirs, ours = AutoTokenizer.from_pretrained(tmp_path), OurTokenizer.from_directory(tmp_path)
    for text in TEXTS:
        expected = theirs(text)["input_ids"]
        assert ours.encode(text).ids == expected, text
        assert ours.decode(expected) == theirs.decode(expected, skip_special_tokens=True), text


# --- chat templates -------------------------------------------------------------------------------------------------

FAMILY = (
    "{% for message in messages %}{% if message['role'] == 'system' %}{{ message['content'][0]['text'] + ' ' }}"
    "{% else %}{{ message['role'].upper() + ': ' }}{% endif %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'video') %}{{ '<video>\\n' }}{% endfor %}"
    "{% if message['role'] == 'user' %}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ content['text'] + ' ' }}{% endfor %}{% elif message['role'] == 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ content['text'] + ' ' }}{% endgeneration %}{% endfor %}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
WITH_SYSTEM = """
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'][0]['text'] | trim %}
    {%- set rest = messages[1:] %}
{%- else %}
    {%- set system = 'Default system.' %}
    {%- set rest = messages %}
{%- endif %}
{{- bos_token + '[SYS] ' + system + ' [/SYS]\n' }}
{%- for message in rest %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Roles must alternate') }}
    {%- endif %}
    {{- '[' ~ message.role ~ ' ' ~ loop.index ~ '/' ~ loop.length ~ '] ' }}
    {%- for part in message.content %}
        {%- if part.type == 'text' %}{{ part.text | trim }}{% else %}{{ '<' + part.type + '>' }}{% endif %}
    {%- endfor %}
    {{- eos_token if message.role == 'assistant' else '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '[assistant] ' }}{% endif %}
"""
WITH_LOOPS = """
{% macro show(part, depth=0) %}({{ part.type }}{{ ':' if part.text is defined else '' }}{{ part.text }}){% endmacro %}
{% set ns = namespace(total=0, seen=[]) %}
{% for message in messages %}
  {% for part in message['content'] %}
    {% if part['type'] == 'image' %}{% continue %}{% endif %}
    {% set ns.total = ns.total + (part.text | default('', true) | length) %}
    {% set ns.seen = ns.seen + [part['type']] %}
    {% generation %}{{ show(part) }}{% endgeneration %}

  {% endfor %}
  {% if loop.index > 4 %}{% break %}{% endif %}
{% endfor %}
{{ ns.total }} {{ ns.seen | join(',') }} {{ messages | map(attribute='role') | list | tojson(indent=2) }}
{{ messages[-1] | tojson }} {{ {'b': 1, 'a': [true, none, "<é>"]} | tojson(sort_keys=true) }}
{% for k, v in {'x': 1, 'y': 2}.items() %}{{ k }}={{ v }}{{ '' if loop.last else ';' }}{% endfor %}
{{ '%s:%03d' % ('pad', 7) }} {{ 'a-b-c'.split('-')[::-1] | join }} {{ tools is none }} {{ strftime_now('%Y') | length }}
"""
TURNS = [
    Turn("system", " Be brief.  "),
    user_turn("What is <b>this</b>? ", ["image", "video", "image"]),
    Turn("assistant", "A café 日本."),
    user_turn("USER: and then?"),
]


def messages_of(turns: list[Turn]) -> list[dict[str, Any]]:
    return [
        {"role": turn.role, "content": [*({"type": kind} for kind in turn.media), {"type": "text", "text": turn.text}]}
        for turn in turns
    ]


@pytest.mark.parametrize(
    "template", [FAMILY, WITH_SYSTEM, WITH_LOOPS, CHAT_TEMPLATE], ids=["family", "system", "loops", "tiny"]
)
@pytest.mark.parametrize("count", [4, 2], ids=["multi-turn", "one-turn"])
def test_chat_template_equals_apply_chat_template(tmp_path: Path, trained: Any, template: str, count: int) -> None:
    write_llama(tmp_path, trained, legacy=False)
    theirs, ours = AutoTokenizer.from_pretrained(tmp_path), OurTokenizer.from_directory(tmp_path)
    for turns in (TURNS[:count], TURNS[1:count]):
        expected = theirs.apply_chat_template(
            messages_of(turns), chat_template=template, add_generation_prompt=True, tokenize=False
        )
        rendered = render(turns, "chat-template", chat_template=template, special_tokens=ours.special_tokens)
        assert rendered.text == expected
        assert expected.strip()


def test_family_template_example_of_the_sheet() -> None:
    turns = [
        Turn("system", "Sys."),
        user_turn("Why?", ["video", "image"]),
        Turn("assistant", "Because."),
        user_turn("And?"),
    ]
    rendered = render(turns, "chat-template", chat_template=FAMILY)
    assert rendered.text == "Sys. USER: <image>\n<video>\nWhy? ASSISTANT: Because. USER: And? ASSISTANT:"


# --- the processor --------------------------------------------------------------------------------------------------


class ReferenceProcessor(VideoLlavaProcessor):
    """transformers' processor where its video half (which needs torchvision) is replaced by given pixels."""

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> None:
        return None

    def _process_videos(self, videos: Any, **kwargs: Any) -> Any:
        flat = [video for row in videos for video in (row if isinstance(row, list) else [row])]
        data = {"pixel_values_videos": flat}
        return data, [self.replace_video_token(data, index) for index in range(len(flat))]


VISION = VisionConfig(
    hidden_size=32, intermediate_size=64, num_layers=2, num_heads=2, image_size=28, patch_size=14, temporal_frames=3
)


@pytest.fixture(scope="module")
def checkpoint(trained: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ModelConfig]:
    directory = tmp_path_factory.mktemp("checkpoint")
    first = write_llama(directory, trained, legacy=False, padding_side="left")
    config = ModelConfig(
        image_tower=VISION,
        video_tower=VISION,
        image_token_id=first,
        video_token_id=first + 1,
        pad_token_id=first + 2,
    )
    return directory, config


def clip(kind: Any, frames: int, seed: int = 0) -> Clip:
    pixels = np.random.default_rng(seed).integers(0, 256, (frames, 28, 28, 3), dtype=np.uint8)
    times = tuple(index / 2 for index in range(frames))
    return Clip(f"{kind}{seed}", kind, pixels, times, tuple(range(frames)), frames, frames / 2, ())


@pytest.mark.parametrize(
    "kinds",
    [(), ("image",), ("video",), ("image", "video"), ("video", "image", "image", "video"), ("image",) * 4],
    ids=str,
)
def test_expanded_ids_equal_the_reference_processor(checkpoint: Any, kinds: tuple[Any, ...]) -> None:
    directory, config = checkpoint
    spec = PixelSpec(size=28, crop=28)
    ours = Processor(OurTokenizer.from_directory(directory), spec, get_preset("transformers"), config)
    reference = ReferenceProcessor(
        image_processor=VideoLlavaImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}),
        video_processor=object(),
        tokenizer=AutoTokenizer.from_pretrained(directory),
        patch_size=14,
    )
    clips = [clip(kind, 1 if kind == "image" else 3, seed) for seed, kind in enumerate(kinds)]
    turns = [user_turn("Why is this funny?"), Turn("assistant", "It is."), user_turn("And now?")]
    prompt = ours.prepare(clips, turns)
    images = [medium.frames[0] for medium in clips if medium.kind == "image"]
    videos = [np.moveaxis(medium.frames, -1, 1) for medium in clips if medium.kind == "video"]
    media_lines = "<image>\n" * len(images) + "<video>\n" * len(videos)
    text = f"USER: {media_lines}Why is this funny? ASSISTANT: It is. USER: And now? ASSISTANT:"
    assert prompt.rendered.text == text
    expected = reference(text=[text], images=images or None, videos=videos or None, return_tensors=None)
    assert list(prompt.plan.input_ids) == list(expected["input_ids"][0])
    assert prompt.plan.visual_tokens == 4 * len(images) + 15 * len(videos)
    if images:
        difference = np.abs(np.concatenate(prompt.pixels_images) - np.stack(expected["pixel_values_images"]))
        # Same float32 steps in another order: a few units in the last place of values below 3.
        assert difference.max() < 2e-6


def test_template_that_writes_bos_gets_no_second_one(checkpoint: Any) -> None:
    directory, config = checkpoint
    preset = Preset("transformers", "uniform-exclusive", "clip-pil-bicubic", "chat-template", temporal_attention=False)
    tokenizer = OurTokenizer.from_directory(directory)
    processor = Processor(tokenizer, PixelSpec(size=28, crop=28), preset, config, WITH_SYSTEM)
    ids = processor.prepare([], [user_turn("Why?")]).plan.input_ids
    theirs = AutoTokenizer.from_pretrained(directory)
    expected = theirs.apply_chat_template(
        messages_of([user_turn("Why?")]), chat_template=WITH_SYSTEM, add_generation_prompt=True, return_dict=False
    )
    assert list(ids) == list(expected)
    assert ids.count(1) == 1


def test_original_preset_splits_at_media_like_the_original(checkpoint: Any) -> None:
    """The rule of `tokenizer_image_token` (PKU videollava/mm_utils.py), written out with transformers' tokenizer:
    split the text at the placeholder, tokenise each piece alone, drop every BOS but the first."""
    directory, config = checkpoint
    theirs = AutoTokenizer.from_pretrained(directory)
    processor = Processor(
        OurTokenizer.from_directory(directory), PixelSpec(size=28, crop=28), get_preset("original"), config
    )
    clips = [clip("video", 3), clip("image", 1)]
    prompt = processor.prepare(clips, [user_turn("Why?")])
    text = f"{VICUNA_SYSTEM} USER: {'<image>' * 3}\n<image>\nWhy? ASSISTANT:"
    pieces = [theirs(piece)["input_ids"] for piece in text.split("<image>")]
    video, image = config.video_token_id, config.image_token_id
    slots = [[video] * 5, [video] * 5, [video] * 5, [image] * 4]
    expected = list(pieces[0])
    for slot, piece in zip(slots, pieces[1:], strict=True):
        expected += slot + piece[1:]
    assert list(prompt.plan.input_ids) == expected
    unsplit = Processor(
        processor.tokenizer,
        processor.pixel_spec,
        Preset("mine", "uniform-inclusive", "languagebind", "vicuna-v1", temporal_attention=False),
        config,
    ).prepare(clips, [user_turn("Why?")])
    # The space token at the start of each piece is what splitting adds.
    assert len(unsplit.plan.input_ids) == len(expected) - 2


def test_original_preset_needs_no_placeholder_tokens(tmp_path: Path, trained: Any, checkpoint: Any) -> None:
    """The original's vocabulary ends before `<image>`; its processor never asks the tokenizer for it."""
    write_llama(tmp_path, trained, legacy=True, media_in_config=True, pad_token="<unk>")
    bare = Processor(OurTokenizer.from_directory(tmp_path), PixelSpec(), get_preset("original"), checkpoint[1])
    with_tokens = tmp_path / "with"
    write_llama(with_tokens, trained, legacy=True)
    full = Processor(OurTokenizer.from_directory(with_tokens), PixelSpec(), get_preset("original"), checkpoint[1])
    media = [bare.medium_tokens(clip("video", 3))]
    assert bare.plan(media, [user_turn("Why?")])[0] == full.plan(media, [user_turn("Why?")])[0]
    shutil.rmtree(with_tokens)
