"""Configuration of a vision tower (CLIP ViT)."""

from dataclasses import dataclass

from filmstrip.config.checks import require, require_positive


@dataclass(frozen=True)
class VisionConfig:
    """CLIP ViT encoder. Defaults are ViT-L/14 at 224 pixels, the tower of Video-LLaVA.

    `temporal_attention` adds, before the spatial attention of every layer, attention of each patch position over
    the frames of its clip. The original release's video tower has it; the transformers port left it out.
    `temporal_frames` is the length of its learned frame embedding (the original was trained with 8).
    """

    hidden_size: int = 1024
    intermediate_size: int = 4096
    num_layers: int = 24
    num_heads: int = 16
    image_size: int = 224
    patch_size: int = 14
    num_channels: int = 3
    layer_norm_eps: float = 1e-5
    activation: str = "quick_gelu"
    temporal_attention: bool = False
    temporal_frames: int = 8

    def __post_init__(self) -> None:
        for name in ("hidden_size", "intermediate_size", "num_layers", "num_heads", "image_size", "patch_size"):
            require_positive(f"vision {name}", getattr(self, name))
        require_positive("vision temporal_frames", self.temporal_frames)
        require(
            self.hidden_size % self.num_heads == 0,
            f"vision: width {self.hidden_size} does not divide into {self.num_heads} heads",
        )
        require(
            self.patch_size <= self.image_size,
            f"vision: a patch of {self.patch_size} pixels does not fit an image of {self.image_size}",
        )

    @property
    def patches_per_side(self) -> int:
        """Patches along one edge of the square image (a remainder of pixels is not covered, as in CLIP)."""
        return self.image_size // self.patch_size

    @property
    def num_patches(self) -> int:
        """Patches of one frame, class token not counted."""
        return self.patches_per_side**2

    @property
    def num_positions(self) -> int:
        """Tokens of one frame inside the tower: the class token and every patch."""
        return self.num_patches + 1
