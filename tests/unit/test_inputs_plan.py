"""Placeholder expansion and the token map."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from filmstrip.errors import PromptError
from filmstrip.inputs import MediumTokens, explain, plan_prompt, plan_warnings, to_dict
from filmstrip.testing.tiny import tiny_vocabulary_size, write_tiny_tokenizer
from filmstrip.text import Tokenizer

IMAGE, VIDEO = 90, 91


def image(name: str = "") -> MediumTokens:
    return MediumTokens("image", 1, 4, name)


def video(frames: int = 2, name: str = "") -> MediumTokens:
    return MediumTokens("video", frames, 5, name, tuple(index / 2 for index in range(frames)))


def test_expansion_positions_and_labels() -> None:
    ids = [1, 5, VIDEO, 13, IMAGE, IMAGE, 7, 8]
    labels = ["template", "template", "media", "media", "media", "media", "user 1", "user 1"]
    media = [image("a.png"), video(2, "b.mp4"), image("c.png")]
    plan = plan_prompt(ids, labels, media, IMAGE, VIDEO)
    assert plan.input_ids == (1, 5, *[VIDEO] * 10, 13, *[IMAGE] * 8, 7, 8)
    assert plan.visual_tokens == 18
    found = [(span.label, span.source, span.start, span.end, span.medium, span.frame) for span in plan.spans]
    assert found == [
        ("template", "template", 0, 2, None, None),
        ("video 0 frame 0", "media", 2, 7, 0, 0),
        ("video 0 frame 1", "media", 7, 12, 0, 1),
        ("media", "media", 12, 13, None, None),
        ("image 0", "media", 13, 17, 0, 0),
        ("image 1", "media", 17, 21, 1, 0),
        ("user 1", "user 1", 21, 23, None, None),
    ]


@given(st.lists(st.sampled_from(["image", "video", "text", "other"]), max_size=20), st.integers(1, 4))
def test_spans_cover_every_position(kinds: list[str], frames: int) -> None:
    token = {"image": IMAGE, "video": VIDEO, "text": 3, "other": 4}
    label = {"image": "media", "video": "media", "text": "user 1", "other": "template"}
    media = [image() if kind == "image" else video(frames) for kind in kinds if kind in ("image", "video")]
    plan = plan_prompt([token[kind] for kind in kinds], [label[kind] for kind in kinds], media, IMAGE, VIDEO)
    ends = [0, *(span.end for span in plan.spans)]
    assert [span.start for span in plan.spans] == ends[:-1]
    assert ends[-1] == len(plan.input_ids)
    assert plan.input_ids.count(VIDEO) == 5 * frames * kinds.count("video")
    assert sum(span.num_tokens for span in plan.spans if span.kind) == plan.visual_tokens


def test_too_many_placeholders_says_which_belongs_to_what() -> None:
    with pytest.raises(PromptError) as caught:
        plan_prompt([VIDEO, 3, VIDEO], ["media", "user 1", "user 1"], [video(2, "b.mp4")], IMAGE, VIDEO)
    assert str(caught.value) == (
        "the prompt has 2 video placeholders for 1 video (10 visual tokens): "
        "placeholder 1 (in media) is video 0 (b.mp4), 10 tokens, placeholder 2 (in user 1) has no video"
    )


def test_too_few_placeholders_and_both_kinds() -> None:
    with pytest.raises(PromptError) as caught:
        plan_prompt([3, IMAGE], ["user 1", "media"], [video(2, "b.mp4")], IMAGE, VIDEO)
    assert str(caught.value) == (
        "the prompt has 1 image placeholder for 0 images (0 visual tokens): placeholder 1 (in media) has no image; "
        "the prompt has 0 video placeholders for 1 video (10 visual tokens): "
        "video 0 (b.mp4), 10 tokens, has no placeholder"
    )


def test_many_placeholders_stay_one_short_line() -> None:
    with pytest.raises(PromptError, match="has 5000 image placeholders for 0 images") as caught:
        plan_prompt([IMAGE] * 5000, ["user 1"] * 5000, [], IMAGE, VIDEO)
    assert len(str(caught.value)) < 400


def test_warnings() -> None:
    plan = plan_prompt([1, VIDEO, 3], ["template", "media", "user 1"], [video(4, "b.mp4")], IMAGE, VIDEO)
    assert plan_warnings(plan, max_positions=22, trained_frames=4) == ()
    assert plan_warnings(plan, max_positions=22, trained_frames=None) == ()
    (short,) = plan_warnings(plan, max_positions=22, max_new_tokens=1, trained_frames=4)
    assert "22 tokens (20 of them visual) plus up to 1 new tokens" in short
    assert "22 positions" in short
    (frames,) = plan_warnings(plan, max_positions=100)
    assert frames == "video 0 (b.mp4) has 4 frames, but the model was trained with 8"


def test_token_map(tmp_path: Path) -> None:
    write_tiny_tokenizer(tmp_path)
    tokenizer, first = Tokenizer.from_directory(tmp_path), tiny_vocabulary_size()
    question = tokenizer.encode("what is this video " * 12, add_special=False).ids
    ids = [1, first + 1, *question]
    labels = ["template", "media", *["user 1"] * len(question)]
    plan = plan_prompt(ids, labels, [video(2, "b.mp4")], first, first + 1)
    rows = explain(plan, tokenizer)
    assert [(row.label, row.tokens, row.first, row.last) for row in rows[:3]] == [
        ("template", 1, 0, 0),
        ("video 0 frame 0", 5, 1, 5),
        ("video 0 frame 1", 5, 6, 10),
    ]
    assert [row.excerpt for row in rows[:3]] == ["<s>", "b.mp4 at 0.00 s", "b.mp4 at 0.50 s"]
    assert rows[3].excerpt.startswith("what is this")
    assert " ... " in rows[3].excerpt
    assert len(rows[3].excerpt) <= 60
    assert rows[3].to_dict()["last"] == len(plan.input_ids) - 1
    stored = json.loads(json.dumps(to_dict(plan)))
    assert stored["prompt_tokens"] == len(plan.input_ids)
    assert stored["visual_tokens"] == 10
    assert stored["spans"][1] == {"label": "video 0 frame 0", "source": "media", "first": 1, "last": 5}
