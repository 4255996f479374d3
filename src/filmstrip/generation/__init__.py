"""From logits to tokens: sampling, prefill and decode steps, the loop over them."""

from filmstrip.generation.loop import TokenLoop
from filmstrip.generation.model import VideoLlavaForGeneration

__all__ = ["TokenLoop", "VideoLlavaForGeneration"]
