"""A plugin of lmms-eval (EvolvingLMMs-Lab), so that the field's own harness runs whatever `filmstrip.load` loads.

    lmms_eval --model filmstrip --model_args pretrained=tiny --tasks mvbench

The entry point `lmms_eval.models` of the package names `manifest`. lmms-eval is not a dependency: this module imports
it when the harness asks for the model.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from filmstrip.api import Assistant, load
from filmstrip.errors import FilmstripError
from filmstrip.media.clip import Clip

if TYPE_CHECKING:
    Model = object
else:
    try:
        from lmms_eval.api.model import lmms as Model  # noqa: N812 - the harness's name of its base class
    except ImportError:
        Model = object

_ARGUMENTS = ("device", "dtype", "compute", "kv", "preset", "prompt", "image_transform", "frame_sampler")


def manifest() -> Any:
    """What lmms-eval registers: the model's name and its class."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest("filmstrip", simple_class_path=f"{__name__}.FilmstripModel")


class FilmstripModel(Model):
    """lmms-eval's model interface over an `Assistant`.

    `pretrained` is what `filmstrip.load` takes; further arguments are its own. Requests of one length of answer are
    answered `batch_size` at a time, greedily unless a task asks for a temperature.
    """

    is_simple = True

    def __init__(
        self, pretrained: str = "tiny", batch_size: int | str = 1, assistant: Assistant | None = None, **choices: Any
    ) -> None:
        super().__init__()
        unknown = sorted(set(choices) - set(_ARGUMENTS) - {"max_batch_size"})
        if unknown:
            raise FilmstripError(f"unknown model argument {unknown[0]!r} (known: {', '.join(_ARGUMENTS)})")
        given = {name: value for name, value in choices.items() if name in _ARGUMENTS and value is not None}
        self.assistant = assistant or load(pretrained, **given)
        self.batch_size = max(1, int(batch_size)) if str(batch_size).isdigit() else 1

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """The answers to requests whose `args` are (context, generation settings, document to visuals, number of the
        document, task, split), in their order.
        """
        answers: dict[int, str] = {}
        groups: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(repr(sorted(request.args[1].items())), []).append(index)
        for indices in groups.values():
            settings = _sampling(requests[indices[0]].args[1])
            for start in range(0, len(indices), self.batch_size):
                part = indices[start : start + self.batch_size]
                asked = [(self._media(requests[index]), requests[index].args[0]) for index in part]
                for index, answer in zip(part, self.assistant.ask_batch(asked, **settings), strict=True):
                    answers[index] = answer.text.strip()
        return [answers[index] for index in range(len(requests))]

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Not offered: tasks that need it are refused with the reason."""
        raise NotImplementedError("filmstrip answers tasks that generate text; this one asks for likelihoods")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Not offered: see `loglikelihood`."""
        raise NotImplementedError("filmstrip answers tasks of one round; this one has several")

    def _media(self, request: Any) -> list[str | Clip]:
        """The visuals of a request's document: paths as they are, pictures in memory as clips."""
        _, _, to_visual, number, task, split = request.args
        document = self.task_dict[task][split][number]  # type: ignore[attr-defined]  # the harness fills it in
        visuals: list[Any] = _flat(to_visual(document)) if isinstance(to_visual, Callable) else []  # type: ignore[arg-type]
        return [visual if isinstance(visual, str) else _picture(visual, index) for index, visual in enumerate(visuals)]


def _flat(visuals: Any) -> list[Any]:
    if not isinstance(visuals, list | tuple):
        return [] if visuals is None else [visuals]
    return [visual for part in visuals for visual in _flat(part)]


def _picture(visual: Any, index: int) -> Clip:
    """A PIL image as a clip of one frame."""
    frame = np.asarray(visual.convert("RGB"))
    return Clip(
        path=f"picture {index}",
        kind="image",
        frames=frame[None],
        times=(0.0,),
        indices=(0,),
        total_frames=1,
        duration=0.0,
    )


def _sampling(settings: dict[str, Any]) -> dict[str, Any]:
    """The harness's generation settings as ours; `until` are strings that end an answer."""
    until = settings.get("until") or ()
    sampling: dict[str, Any] = {
        "max_new_tokens": int(settings.get("max_new_tokens") or 128),
        "temperature": float(settings.get("temperature") or 0.0) if settings.get("do_sample", True) else 0.0,
        "stop_strings": tuple([until] if isinstance(until, str) else until),
    }
    if settings.get("top_p") is not None:
        sampling["top_p"] = float(settings["top_p"])
    return sampling
