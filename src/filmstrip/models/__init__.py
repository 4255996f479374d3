"""The model: towers, projector, fusion, decoder. Knows no file, tokenizer, checkpoint or loop."""

from filmstrip.models.decoder import Decoder
from filmstrip.models.video_llava import VideoLlava
from filmstrip.models.vision import VisionTower

__all__ = ["Decoder", "VideoLlava", "VisionTower"]
