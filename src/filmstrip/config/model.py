"""Configuration of the whole model: two towers, a projector, a text tower, and how they are joined."""

from dataclasses import dataclass, field
from typing import Literal, get_args

from filmstrip.config.aggregation import AGGREGATIONS, POOL_STRIDE, AggregationSettings
from filmstrip.config.checks import require, require_choice
from filmstrip.config.text import TextConfig
from filmstrip.config.tiles import Size, Tiling, tile_image
from filmstrip.config.vision import VisionConfig

SelectStrategy = Literal["default", "full"]
MediaKind = Literal["image", "video"]
Family = Literal["video-llava", "llava", "llava-next-video"]

SELECT_STRATEGIES: tuple[str, ...] = get_args(SelectStrategy)
MAX_GRIDS, MAX_GRID_TILES = 64, 64
FAMILIES: dict[str, str] = {"video-llava": "Video-LLaVA", "llava": "LLaVA-1.5", "llava-next-video": "LLaVA-NeXT-Video"}


@dataclass(frozen=True)
class ProjectorConfig:
    """Two-layer MLP from the towers' width to the text model's (LLaVA-1.5)."""

    activation: str = "gelu"
    bias: bool = True


@dataclass(frozen=True)
class ModelConfig:
    """Video-LLaVA and its sisters. Defaults are `LanguageBind/Video-LLaVA-7B-hf`.

    `family` is the checkpoint's own name for itself; what the model computes is decided by the other fields alone.
    `shared_towers` makes the video tower the same module as the image tower (one set of weights).
    `select_layers` are indices into the tower's hidden states (0 is the embedding output, -1 the last layer's);
    several are concatenated on the channel axis. `select_strategy` `default` drops an image's class token, `full`
    keeps it; `video_class_token` says that a video's class tokens are kept whatever the strategy (reference sheet 3.2).
    `aggregation` is applied to videos, after selection and before the projector, with `aggregation_settings` where it
    has any. `image_grids` are the (height, width) in pixels among which an image's tiling is chosen (LLaVA-NeXT's
    any-resolution images); empty: one tile per image.
    `video_token_id` None: the model takes images only.
    """

    family: Family = "video-llava"
    text: TextConfig = field(default_factory=TextConfig)
    image_tower: VisionConfig = field(default_factory=VisionConfig)
    video_tower: VisionConfig = field(default_factory=VisionConfig)
    shared_towers: bool = False
    projector: ProjectorConfig = field(default_factory=ProjectorConfig)
    select_layers: tuple[int, ...] = (-2,)
    select_strategy: SelectStrategy = "default"
    video_class_token: bool = True
    aggregation: str = "keep-all"
    aggregation_settings: AggregationSettings = field(default_factory=AggregationSettings)
    image_grids: tuple[Size, ...] = ()
    image_token_id: int = 32_000
    video_token_id: int | None = 32_001
    pad_token_id: int = 32_002

    def __post_init__(self) -> None:
        require_choice("model family", self.family, FAMILIES)
        require_choice("vision feature select strategy", self.select_strategy, SELECT_STRATEGIES)
        require_choice("frame aggregation", self.aggregation, AGGREGATIONS)
        require(len(self.select_layers) > 0, "vision feature layers: at least one is needed")
        require(self.image_token_id != self.video_token_id, "the image and video placeholders share one token id")
        self._check_aggregation()
        self._check_tiles()
        for kind in ("image", "video"):
            tower = self.tower(kind)
            states = tower.num_layers + 1
            for layer in self.select_layers:
                require(
                    -states <= layer < states,
                    f"vision feature layer {layer} is not among the {kind} tower's {states} hidden states",
                )
        require(
            self.image_tower.hidden_size == self.video_tower.hidden_size,
            f"one projector serves both towers, but their widths are {self.image_tower.hidden_size} (image) "
            f"and {self.video_tower.hidden_size} (video)",
        )
        if self.shared_towers:
            require(self.image_tower == self.video_tower, "shared towers need one configuration for image and video")

    def _check_aggregation(self) -> None:
        """Each aggregation needs the tokens that it works on."""
        name, class_token = self.aggregation, self.keeps_class_token("video")
        self.aggregation_settings.require_used_by(name)
        require(
            name != "strided-pool" or not class_token,
            f"the aggregation {name!r} pools squares of patches; a video's class tokens must be dropped",
        )
        require(
            name != "class-token" or class_token,
            f"the aggregation {name!r} keeps nothing else of a frame; a video's class tokens must not be dropped",
        )
        if name == "token-merging":
            kept, there = self.aggregation_settings.kept, self._frame_positions
            least = 1 + int(class_token)  # a class token is not merged
            require(
                least <= kept <= there,
                f"the aggregation {name!r} can keep {least} to {there} tokens of a frame here, not {kept}",
            )
        require(self.clip_tokens(1) > 0, f"the aggregation {name!r} leaves nothing of a frame")

    def _check_tiles(self) -> None:
        """Tiling works on squares of patches, so a class token among them has no place."""
        if not self.image_grids:
            return
        require(
            not self.keeps_class_token("image"),
            "tiles are joined along their patches; an image's class tokens must be dropped (select strategy 'default')",
        )
        require(len(self.image_grids) <= MAX_GRIDS, f"at most {MAX_GRIDS} image grids are supported")
        tile = self.image_tower.image_size
        for height, width in self.image_grids:
            tiles, left_over = (height // tile) * (width // tile), height % tile + width % tile
            require(
                height > 0 and width > 0 and left_over == 0 and 0 < tiles <= MAX_GRID_TILES,
                f"the image grid {height}x{width} (height x width) is not made of 1 to {MAX_GRID_TILES} whole tiles of "
                f"{tile} pixels a side",
            )

    @property
    def placeholder_ids(self) -> dict[MediaKind, int]:
        """The placeholder id of each kind of media that the model takes."""
        ids: dict[MediaKind, int] = {"image": self.image_token_id}
        return ids if self.video_token_id is None else ids | {"video": self.video_token_id}

    @property
    def title(self) -> str:
        """What people call the family."""
        return FAMILIES[self.family]

    def tower(self, kind: MediaKind) -> VisionConfig:
        """The configuration of the tower that encodes `kind`."""
        return self.image_tower if kind == "image" else self.video_tower

    @property
    def projector_input_size(self) -> int:
        """Width the projector reads: one tower width per selected layer."""
        return self.image_tower.hidden_size * len(self.select_layers)

    def keeps_class_token(self, kind: MediaKind) -> bool:
        """Whether a frame of `kind` keeps its class token on the way to the text model."""
        return self.select_strategy == "full" or (kind == "video" and self.video_class_token)

    def tokens_per_frame(self, kind: MediaKind) -> int:
        """Visual tokens of one image that is one tile (see `tiling` for others), or those of a video that come from
        one frame alone: none, where all its tokens come from all frames (`joint_tokens`).
        """
        if kind == "image":
            return self.image_tower.num_patches + int(self.keeps_class_token("image"))
        return {
            "mean-frames": 0,
            "temporal-spatial-pool": 1,
            "strided-pool": (self.video_tower.patches_per_side // POOL_STRIDE) ** 2,
            "resampler": 0,
            "class-token": 1,
            "token-merging": self.aggregation_settings.kept,
        }.get(self.aggregation, self._frame_positions)

    @property
    def joint_tokens(self) -> int:
        """Visual tokens of a clip that come from all its frames together. They stand behind those of the frames."""
        if self.aggregation == "resampler":
            return self.aggregation_settings.queries
        return self._frame_positions if self.aggregation in ("mean-frames", "temporal-spatial-pool") else 0

    def clip_tokens(self, num_frames: int) -> int:
        """Visual tokens of a video of `num_frames` frames: the placeholders it needs in a prompt."""
        return num_frames * self.tokens_per_frame("video") + self.joint_tokens

    @property
    def _frame_positions(self) -> int:
        """Tokens of a video's frame on their way out of the tower, before aggregation."""
        return self.video_tower.num_patches + int(self.keeps_class_token("video"))

    def tiling(self, size: Size) -> Tiling | None:
        """How an image of `size` (height, width) in pixels is cut into tiles; None when each image is one tile."""
        return tile_image(size, self.image_grids, self.image_tower.image_size) if self.image_grids else None

    def tokens_per_image(self, size: Size) -> int:
        """Visual tokens of an image of `size` (height, width): base tile, then each row of patches and its newline."""
        base, tiling = self.tokens_per_frame("image"), self.tiling(size)
        if tiling is None:
            return base
        rows, columns = tiling.num_patches(self.image_tower.patches_per_side)
        return base + rows * (columns + 1)
