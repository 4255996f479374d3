"""The model: towers, projector, fusion, decoder. Knows no file, tokenizer, checkpoint or loop."""

from filmstrip.models.video_llava import VideoLlava

__all__ = ["VideoLlava"]
