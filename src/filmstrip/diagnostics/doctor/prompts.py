"""Whether a question can be asked at all: the checkpoint's chat template is run once for each kind of media."""

from dataclasses import replace

from filmstrip.checkpoint.hf_processor import TEMPLATE_FILE
from filmstrip.config import get_preset
from filmstrip.diagnostics.doctor.findings import Findings
from filmstrip.diagnostics.doctor.settings import Settings
from filmstrip.errors import FilmstripError
from filmstrip.inputs.plan import MediumTokens
from filmstrip.inputs.processor import Processor
from filmstrip.text.prompt import Turn


def check_prompts(settings: Settings, findings: Findings) -> None:
    """Write a prompt with one image, and one with one video, by the chat template; report what fails.

    Templates run in a sandbox with limits. Nothing is done when what a prompt needs was found to be wrong already.
    """
    model, tokenizer, files = settings.model, settings.tokenizer, settings.processor
    if model is None or tokenizer is None or files is None or files.chat_template is None:
        return
    if findings.has("placeholder-missing") or findings.has("placeholder-is-another-token"):
        return
    preset = replace(get_preset("transformers"), prompt="chat-template")
    processor = Processor(tokenizer, files.pixels, preset, model, files.chat_template)
    for kind in processor.media_ids:
        joint = model.joint_tokens if kind == "video" else 0
        medium = MediumTokens(kind, 1, model.tokens_per_frame(kind), name=f"one {kind}", joint_tokens=joint)
        try:
            processor.plan([medium], [Turn("user", "What is this?")])
        except FilmstripError as error:
            findings.add("template-fails", TEMPLATE_FILE, f"a question about {medium.name}: {error}")
