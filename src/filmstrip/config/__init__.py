"""Frozen dataclasses that describe a model and a run. No tensors, no files."""

from filmstrip.config.aggregation import AggregationSettings
from filmstrip.config.generation import SamplingConfig
from filmstrip.config.model import Family, MediaKind, ModelConfig, ProjectorConfig
from filmstrip.config.preset import PRESETS, Preset, get_preset
from filmstrip.config.text import RopeConfig, TextConfig
from filmstrip.config.vision import VisionConfig

__all__ = [
    "PRESETS",
    "AggregationSettings",
    "Family",
    "MediaKind",
    "ModelConfig",
    "Preset",
    "ProjectorConfig",
    "RopeConfig",
    "SamplingConfig",
    "TextConfig",
    "VisionConfig",
    "get_preset",
]
