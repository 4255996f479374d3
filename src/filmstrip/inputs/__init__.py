"""Inputs: from decoded media and a conversation to tensors. Placeholders are expanded here, before the device."""

from filmstrip.inputs.collate import Batch, collate
from filmstrip.inputs.plan import MediumTokens, PromptPlan, Span, plan_prompt, plan_warnings
from filmstrip.inputs.processor import Processor, Prompt, place_media
from filmstrip.inputs.token_map import TokenMapRow, explain, to_dict

__all__ = [
    "Batch",
    "MediumTokens",
    "Processor",
    "Prompt",
    "PromptPlan",
    "Span",
    "TokenMapRow",
    "collate",
    "explain",
    "place_media",
    "plan_prompt",
    "plan_warnings",
    "to_dict",
]
