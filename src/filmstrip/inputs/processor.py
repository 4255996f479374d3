"""The processor: media and turns in, everything the model needs out. No device work."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from filmstrip.config import MediaKind, ModelConfig, Preset
from filmstrip.config.checks import require
from filmstrip.config.tiles import Size
from filmstrip.errors import PromptError
from filmstrip.inputs.plan import MediumTokens, PromptPlan, plan_prompt, plan_warnings
from filmstrip.media.clip import Clip
from filmstrip.media.tiles import tile_pixels
from filmstrip.media.transform import PixelSpec, to_pixels
from filmstrip.shapes import Float, Tensor
from filmstrip.text.encode import tokenize
from filmstrip.text.prompt import Placeholders, Rendered, Turn, render
from filmstrip.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Prompt:
    """One row of model input.

    `pixels_images` has one tensor per image (N tiles each, one unless the model cuts images up), `pixels_videos` one
    per video (F frames each), in prompt order. `image_sizes` are the images' heights and widths in pixels. `rendered`
    is the text before tokenisation; `warnings` say what is unusual (media, length, frame count).
    """

    plan: PromptPlan
    rendered: Rendered
    pixels_images: tuple[Float[Tensor, "_ C Y X"], ...] = ()
    pixels_videos: tuple[Float[Tensor, "_ C Y X"], ...] = ()
    image_sizes: tuple[Size, ...] = ()
    warnings: tuple[str, ...] = ()

    @cached_property
    def pixel_hashes(self) -> dict[MediaKind, tuple[str, ...]]:
        """SHA-256 of what the towers read of each image and of each video."""
        pixels: dict[MediaKind, tuple[Tensor, ...]] = {"image": self.pixels_images, "video": self.pixels_videos}
        return {
            kind: tuple(hashlib.sha256(one.numpy().tobytes()).hexdigest() for one in media)
            for kind, media in pixels.items()
        }


class Processor:
    """Everything between files on one side and tensors on the other, for one checkpoint and one preset."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        pixel_spec: PixelSpec,
        preset: Preset,
        model_config: ModelConfig,
        chat_template: str | None = None,
        trained_frames: int | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.pixel_spec = pixel_spec
        self.preset = preset
        self.model_config = model_config
        self.chat_template = chat_template
        self.trained_frames = trained_frames or model_config.video_tower.temporal_frames
        names = {kind: tokenizer.id_to_token(token_id) for kind, token_id in self.media_ids.items()}
        self.placeholders = Placeholders(names.get("image") or "<image>", names.get("video") or "<video>")

    @property
    def media_ids(self) -> Mapping[MediaKind, int]:
        """The placeholder id of each kind of media that the model takes."""
        return self.model_config.placeholder_ids

    def prepare(
        self,
        media: Sequence[Clip],
        turns: Sequence[Turn],
        *,
        max_new_tokens: int = 0,
        add_generation_prompt: bool = True,
        generator: torch.Generator | None = None,
    ) -> Prompt:
        """Build one row of input from decoded media and a conversation.

        Media belong to the first user turn, unless turns name theirs (`Turn.media`); images and videos each keep the
        order given. `generator` is for transforms that draw at random. Raises `PromptError` when placeholders and
        media do not match or the model does not take them, `CheckpointError` when the tokenizer lacks a placeholder.
        """
        plan, rendered = self.plan([self.medium_tokens(clip) for clip in media], turns, add_generation_prompt)
        warnings = [f"{clip.path}: {text}" for clip in media for text in clip.warnings]
        warnings += plan_warnings(
            plan,
            max_positions=self.model_config.text.max_positions,
            max_new_tokens=max_new_tokens,
            trained_frames=self.trained_frames,
        )
        images = [clip for clip in media if clip.kind == "image"]
        return Prompt(
            plan,
            rendered,
            tuple(self.pixels(clip, generator) for clip in images),
            tuple(self.pixels(clip, generator) for clip in media if clip.kind == "video"),
            tuple(_size(clip) for clip in images),
            tuple(warnings),
        )

    def pixels(self, clip: Clip, generator: torch.Generator | None = None) -> Float[Tensor, "_ C Y X"]:
        """What a tower reads of a clip: its frames, or the tiles of an image that the model cuts up.

        Raises `ConfigError` when tiles are to be made by a transform that has none, `MediaError` for pixels past the
        limits.
        """
        transform = self.preset.image_transform
        tiling = self.model_config.tiling(_size(clip)) if clip.kind == "image" else None
        if tiling is None:
            return to_pixels(clip.frames, clip.kind, self.pixel_spec, transform, generator)
        require(
            transform == "clip-pil-bicubic",
            f"{self.model_config.title} cuts images into tiles, which the transform {transform!r} does not know; "
            "choose 'clip-pil-bicubic'",
        )
        return tile_pixels(clip.frames[0], self.pixel_spec, tiling)

    def plan(
        self, media: Sequence[MediumTokens], turns: Sequence[Turn], add_generation_prompt: bool = True
    ) -> tuple[PromptPlan, Rendered]:
        """The token side of `prepare` alone: no pixels are needed to know a prompt's length and layout."""
        style = self.preset.prompt
        rendered = render(
            place_media(turns, [medium.kind for medium in media]),
            style,
            placeholders=self.placeholders,
            chat_template=self.chat_template,
            special_tokens=self.tokenizer.special_tokens,
            add_generation_prompt=add_generation_prompt,
        )
        labelled = tokenize(
            rendered,
            self.tokenizer,
            self.media_ids,
            placeholders=self.placeholders,
            split_at_media=self.preset.split_at_media,
            add_special=not (style == "chat-template" and self._starts_with_bos(rendered.text)),
        )
        config = self.model_config
        plan = plan_prompt(labelled.ids, labelled.labels, media, config.image_token_id, config.video_token_id)
        return plan, rendered

    def require_kind(self, clip: Clip) -> None:
        """Raise `PromptError` for a clip of a kind that the model does not take."""
        if clip.kind not in self.media_ids:
            raise PromptError(f"{clip.path} is a video, and {self.model_config.title} takes images only")

    def medium_tokens(self, clip: Clip) -> MediumTokens:
        """How many visual tokens a clip takes in this model. Raises `PromptError` for a kind it does not take."""
        self.require_kind(clip)
        config = self.model_config
        medium = MediumTokens(
            kind=clip.kind,
            num_frames=clip.frames.shape[0],
            tokens_per_frame=config.tokens_per_frame(clip.kind),
            name=clip.path,
            times=clip.times,
            joint_tokens=config.joint_tokens if clip.kind == "video" else 0,
        )
        tiling = config.tiling(_size(clip)) if clip.kind == "image" else None
        if tiling is None:
            return medium
        rows, columns = tiling.num_patches(config.image_tower.patches_per_side)
        return replace(medium, tiling=tiling, rows=rows, row_length=columns + 1)

    def _starts_with_bos(self, text: str) -> bool:
        """A template that writes BOS itself must not get a second one (as in transformers)."""
        bos = self.tokenizer.special_tokens.get("bos_token")
        return bool(bos) and text.startswith(str(bos))


def _size(clip: Clip) -> Size:
    """(height, width) of a clip's frames in pixels."""
    height, width = clip.frames.shape[1:3]
    return height, width


def place_media(turns: Sequence[Turn], kinds: Sequence[MediaKind]) -> list[Turn]:
    """Give media to the first user turn when no turn names any. Raises `PromptError` when there is no user turn."""
    placed = list(turns)
    if not kinds or any(turn.media for turn in placed):
        return placed
    for index, turn in enumerate(placed):
        if turn.role == "user":
            placed[index] = replace(turn, media=tuple(kinds))
            return placed
    raise PromptError("media were given, but the conversation has no question to go with them")
