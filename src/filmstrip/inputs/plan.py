"""Placeholder expansion: one pure function on integers, run before anything touches a device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from filmstrip.config import MediaKind
from filmstrip.config.tiles import Tiling
from filmstrip.errors import PromptError

KINDS: tuple[MediaKind, ...] = ("image", "video")

# An error message lists so many placeholders and no more.
_LISTED = 4


@dataclass(frozen=True)
class MediumTokens:
    """One image or video as the prompt sees it: frames and visual tokens.

    A video's `joint_tokens` come from all its frames together and stand behind those of the single frames.
    An image that is cut into tiles has, after the `tokens_per_frame` of its base tile, `rows` rows of `row_length`
    tokens (patches, then the newline); `tiling` says how they lie. `name` and `times` (seconds of each frame) are for
    display only.
    """

    kind: MediaKind
    num_frames: int
    tokens_per_frame: int
    name: str = ""
    times: tuple[float, ...] = ()
    tiling: Tiling | None = None
    rows: int = 0
    row_length: int = 0
    joint_tokens: int = 0

    @property
    def num_tokens(self) -> int:
        """Visual tokens of the whole medium."""
        return self.num_frames * self.tokens_per_frame + self.joint_tokens + self.rows * self.row_length

    def parts(self) -> list[tuple[str, int, int | None]]:
        """What a reader would tell apart, in prompt order: a name after the medium's own, a number of tokens, and the
        number of the frame or part (None: of all frames).
        """
        if self.kind == "video":
            numbers = range(self.num_frames if self.tokens_per_frame else 0)
            frames: list[tuple[str, int, int | None]] = [(f" frame {i}", self.tokens_per_frame, i) for i in numbers]
            return [*frames, (" all frames", self.joint_tokens, None)] if self.joint_tokens else frames
        if self.tiling is None:
            return [("", self.tokens_per_frame, 0)]
        base: list[tuple[str, int, int | None]] = [(" base", self.tokens_per_frame, 0)]
        return [*base, (" tiles", self.rows * self.row_length, 1)] if self.rows else base


@dataclass(frozen=True)
class Span:
    """Token positions `start` to `end` (exclusive) of the expanded prompt.

    `label` says what they are (`template`, `user 1`, `image 0`, `image 0 tiles`, `video 0 frame 3`, `video 0 all
    frames`), `source` which text they or their placeholder come from. Visual spans carry their medium's index within
    its kind, and the frame (of a video; None for tokens of all frames together) or part (of an image in tiles: 0 is
    the base tile, 1 the others).
    """

    start: int
    end: int
    label: str
    source: str
    kind: MediaKind | None = None
    medium: int | None = None
    frame: int | None = None

    @property
    def num_tokens(self) -> int:
        """Length in tokens."""
        return self.end - self.start


@dataclass(frozen=True)
class PromptPlan:
    """A prompt with its placeholders expanded. `spans` cover all positions in order."""

    input_ids: tuple[int, ...]
    spans: tuple[Span, ...]
    visual_tokens: int
    media: tuple[MediumTokens, ...]

    @property
    def media_end(self) -> int:
        """The position behind the last visual token; 0 without any."""
        return max((span.end for span in self.spans if span.kind is not None), default=0)

    def media_of(self, kind: MediaKind) -> tuple[MediumTokens, ...]:
        """The media of one kind, in prompt order."""
        return tuple(medium for medium in self.media if medium.kind == kind)


def plan_prompt(
    ids: Sequence[int],
    labels_of_ids: Sequence[str],
    media: Sequence[MediumTokens],
    image_token_id: int,
    video_token_id: int | None,
) -> PromptPlan:
    """Repeat each placeholder once per visual token and note what every position is.

    The k-th image placeholder belongs to the k-th image, the k-th video placeholder to the k-th video; a video's
    frames follow one another with nothing between (reference: `VideoLlavaProcessor`, sheet 5.3), and so do an image's
    tiles. Raises `PromptError` when placeholders and media do not match, saying which belongs to which.
    """
    placeholder_ids: dict[int, MediaKind] = {image_token_id: "image"}
    if video_token_id is not None:
        placeholder_ids[video_token_id] = "video"
    _check_counts(ids, labels_of_ids, media, placeholder_ids)
    queues = {kind: enumerate([medium for medium in media if medium.kind == kind]) for kind in KINDS}
    expanded: list[int] = []
    spans: list[Span] = []
    for token_id, source in zip(ids, labels_of_ids, strict=True):
        kind = placeholder_ids.get(token_id)
        start = len(expanded)
        if kind is None:
            expanded.append(token_id)
            if spans and spans[-1].label == source and spans[-1].kind is None:
                start = spans.pop().start
            spans.append(Span(start, len(expanded), source, source))
            continue
        index, medium = next(queues[kind])
        expanded.extend([token_id] * medium.num_tokens)
        for name, tokens, number in medium.parts():
            spans.append(Span(start, start + tokens, f"{kind} {index}{name}", source, kind, index, number))
            start += tokens
    return PromptPlan(tuple(expanded), tuple(spans), sum(medium.num_tokens for medium in media), tuple(media))


def plan_warnings(
    plan: PromptPlan, *, max_positions: int, max_new_tokens: int = 0, trained_frames: int | None = 8
) -> tuple[str, ...]:
    """What the model was not trained for: a prompt (with its answer) too long, or another number of frames."""
    warnings = []
    total = len(plan.input_ids) + max_new_tokens
    if total > max_positions:
        answer = f" plus up to {max_new_tokens} new tokens" if max_new_tokens else ""
        warnings.append(
            f"the prompt has {len(plan.input_ids)} tokens ({plan.visual_tokens} of them visual){answer}, "
            f"but the model was trained for {max_positions} positions; answers past that are unreliable"
        )
    if trained_frames is not None:
        for index, medium in enumerate(plan.media_of("video")):
            if medium.num_frames != trained_frames:
                warnings.append(
                    f"video {index}{_named(medium)} has {medium.num_frames} frames, "
                    f"but the model was trained with {trained_frames}"
                )
    return tuple(warnings)


def _check_counts(
    ids: Sequence[int], labels: Sequence[str], media: Sequence[MediumTokens], placeholder_ids: dict[int, MediaKind]
) -> None:
    placeholders = Counter(placeholder_ids[token_id] for token_id in ids if token_id in placeholder_ids)
    problems = []
    for kind in KINDS:
        given = [medium for medium in media if medium.kind == kind]
        if placeholders[kind] == len(given):
            continue
        tokens = sum(medium.num_tokens for medium in given)
        sources = [
            source for token_id, source in zip(ids, labels, strict=True) if placeholder_ids.get(token_id) == kind
        ]
        problems.append(
            f"the prompt has {placeholders[kind]} {kind} {_plural('placeholder', placeholders[kind])} for {len(given)} "
            f"{_plural(kind, len(given))} ({tokens} visual tokens): {_assignment(kind, sources, given)}"
        )
    if problems:
        raise PromptError("; ".join(problems))


def _assignment(kind: MediaKind, sources: Sequence[str], given: Sequence[MediumTokens]) -> str:
    """Which placeholder goes with which medium; one line, shortened."""
    parts = []
    for index in range(max(len(sources), len(given))):
        placeholder = f"placeholder {index + 1} (in {sources[index]})" if index < len(sources) else ""
        medium = f"{kind} {index}{_named(given[index])}, {given[index].num_tokens} tokens" if index < len(given) else ""
        if placeholder and medium:
            parts.append(f"{placeholder} is {medium}")
        elif placeholder:
            parts.append(f"{placeholder} has no {kind}")
        else:
            parts.append(f"{medium}, has no placeholder")
    # The unmatched ones are at the end and matter most.
    shown = parts if len(parts) <= _LISTED else [*parts[: _LISTED - 1], "...", parts[-1]]
    return ", ".join(shown)


def _named(medium: MediumTokens) -> str:
    return f" ({medium.name})" if medium.name else ""


def _plural(word: str, count: int) -> str:
    return word if count == 1 else f"{word}s"
