"""Configuration of the whole model: two towers, a projector, a text tower, and how they are joined."""

from dataclasses import dataclass, field
from typing import Literal, get_args

from filmstrip.config.checks import require, require_choice
from filmstrip.config.text import TextConfig
from filmstrip.config.vision import VisionConfig

SelectStrategy = Literal["default", "full"]
MediaKind = Literal["image", "video"]

SELECT_STRATEGIES: tuple[str, ...] = get_args(SelectStrategy)
AGGREGATIONS: tuple[str, ...] = ("keep-all",)


@dataclass(frozen=True)
class ProjectorConfig:
    """Two-layer MLP from the towers' width to the text model's (LLaVA-1.5)."""

    activation: str = "gelu"
    bias: bool = True


@dataclass(frozen=True)
class ModelConfig:
    """Video-LLaVA. Defaults are `LanguageBind/Video-LLaVA-7B-hf`.

    `shared_towers` makes the video tower the same module as the image tower (one set of weights).
    `select_layers` are indices into the tower's hidden states (0 is the embedding output, -1 the last layer's);
    several are concatenated on the channel axis. `select_strategy` `default` drops an image's class token, `full`
    keeps it; a video's class tokens are always kept (reference sheet 3.2).
    """

    text: TextConfig = field(default_factory=TextConfig)
    image_tower: VisionConfig = field(default_factory=VisionConfig)
    video_tower: VisionConfig = field(default_factory=VisionConfig)
    shared_towers: bool = False
    projector: ProjectorConfig = field(default_factory=ProjectorConfig)
    select_layers: tuple[int, ...] = (-2,)
    select_strategy: SelectStrategy = "default"
    aggregation: str = "keep-all"
    image_token_id: int = 32_000
    video_token_id: int = 32_001
    pad_token_id: int = 32_002

    def __post_init__(self) -> None:
        require_choice("vision feature select strategy", self.select_strategy, SELECT_STRATEGIES)
        require_choice("frame aggregation", self.aggregation, AGGREGATIONS)
        require(len(self.select_layers) > 0, "vision feature layers: at least one is needed")
        require(self.image_token_id != self.video_token_id, "the image and video placeholders share one token id")
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

    def tower(self, kind: MediaKind) -> VisionConfig:
        """The configuration of the tower that encodes `kind`."""
        return self.image_tower if kind == "image" else self.video_tower

    @property
    def projector_input_size(self) -> int:
        """Width the projector reads: one tower width per selected layer."""
        return self.image_tower.hidden_size * len(self.select_layers)

    def keeps_class_token(self, kind: MediaKind) -> bool:
        """Whether a frame of `kind` keeps its class token on the way to the text model."""
        return kind == "video" or self.select_strategy == "full"

    def tokens_per_frame(self, kind: MediaKind) -> int:
        """Visual tokens that one frame of `kind` contributes to the prompt."""
        return self.tower(kind).num_patches + int(self.keeps_class_token(kind))
