"""What has been read before is not read again: visual tokens of a medium, and keys and values of a prompt's beginning.

Both are found by what they were made from: pixels, token ids, weights, configuration, dtype, program. A prompt is
always read in two parts, up to the end of its last medium and the rest, so that a second question about the same media
does exactly what it would have done from scratch, bit for bit, on the same machine and as many threads. A model that
somebody has changed since it was loaded (weights, hooks, attributes of a module, a `forward`) remembers nothing.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import nn

from filmstrip.api.answer import Origin, recorded_versions
from filmstrip.cache import ContentStore, KVCache, kv_cache_bytes
from filmstrip.checkpoint.digest import BLOCK_BYTES
from filmstrip.config import MediaKind
from filmstrip.config.tiles import Size
from filmstrip.generation import VideoLlavaForGeneration
from filmstrip.generation.step import OnChunk
from filmstrip.inputs.processor import Prompt
from filmstrip.kernels import find_kernels
from filmstrip.models.record import hook_numbers
from filmstrip.models.wide import is_stored
from filmstrip.shapes import Float, Int, Tensor

MEMORY_BYTES = 2 * 2**30  # or one clip of the trained length, where that is more (`memory_limit`)
DISK_BYTES = 20 * 10**9
_WORDS = 256  # tokens in front of a clip that fit into the limit beside it
_SAMPLES = 4  # values of each parameter that are compared
# Attributes of modules that entries are found by, and those that play no part in reading a prompt.
_ASIDE = {"backend", "compiled", "kv_dtype", "eos_token_ids", "wide_steps"}
_PROGRAM = ("models", "ops", "generation", "kernels", "cache")  # what decides what is remembered


@dataclass(frozen=True)
class _Medium:
    """One image or video as the towers read it; `size` is an image's before any resizing. `pixel_hash` is there where
    something is remembered.
    """

    kind: MediaKind
    pixels: Tensor
    num_tokens: int
    size: Size | None
    pixel_hash: str | None

    @property
    def content(self) -> list[object]:
        """What its visual tokens are made from, as plain data."""
        return [self.kind, self.pixel_hash, [*self.pixels.shape], self.size]


@dataclass(frozen=True)
class Reading:
    """A prompt's first `remembered` tokens are in the cache; `x_1TD` are the embeddings of the others, of which the
    first `beginning` are to be read as a part of their own and shown to `on_chunk`, which remembers them.
    """

    remembered: int
    x_1TD: Float[Tensor, "1 T D"]
    beginning: int = 0
    on_chunk: OnChunk = lambda done, total: None


class PromptReader:
    """Reads prompts with one model; `store` holds what it has read, if there is one."""

    def __init__(self, model: VideoLlavaForGeneration, origin: Origin, store: ContentStore | None) -> None:
        self.model, self.store = model, store
        self.device, self.dtype = model.text_tower.token_embedding.weight.device, model.text_tower.compute_dtype
        backends = [tower.backend for tower in (model.image_tower, model.video_tower, model.text_tower)]
        # Reading a prompt, few rows times stored weights is all that the kernels do, and they round differently.
        has_kernels = self.device.type == "cpu" and is_stored(model) and find_kernels()[0] is not None
        made_by = [
            origin.weights_hash,
            origin.weights_files,
            program_hash(),
            torch.get_num_threads(),
            repr(model.config),
            origin.dtype,
            str(self.dtype),
            str(model.kv_dtype),
            self.device.type,
            backends,
            model.compiled,
            has_kernels,
        ]
        self._made_by = json.dumps([*made_by, recorded_versions()], sort_keys=True)

    def recall(self, prompt: Prompt, cache: KVCache) -> Reading:
        """Bring what is remembered of a prompt's beginning into an empty cache, and embed the rest of the prompt."""
        ids_1T = torch.tensor([prompt.plan.input_ids], device=self.device)
        media, end, store = self._media(prompt), self._beginning(prompt), self.store
        if end == 0 or store is None:
            return Reading(0, self.model.fuse(ids_1T, *self._visual_tokens(media)), end)
        key = self._key("beginning", [*prompt.plan.input_ids[:end]], [medium.content for medium in media])
        shape = (*cache.keys.shape[:3], end, cache.keys.shape[4])
        found = store.get(key, dict.fromkeys(("keys", "values"), (shape, cache.keys.dtype)))
        if found is not None:
            cache.load(found)
            return Reading(end, self.model.fuse(ids_1T[:, end:]))

        def keep(done: int, _total: int) -> None:
            if done == end and cache.filled_bytes <= store.most_bytes:
                store.put(key, cache.copy())

        return Reading(0, self.model.fuse(ids_1T, *self._visual_tokens(media)), end, keep)

    def embed(self, prompts: Sequence[Prompt], ids_BT: Int[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        """Embeddings of a batch; a medium that several rows ask about is encoded once, if there is a store."""
        return self.model.fuse(ids_BT, *self._visual_tokens([medium for row in prompts for medium in self._media(row)]))

    def _beginning(self, prompt: Prompt) -> int:
        """Tokens up to the end of the last medium; 0 where nothing stands behind it, or where keys cannot be kept.

        Under dynamic rotary scaling, past the trained length, every key depends on the length of the whole prompt.
        """
        length, end = len(prompt.plan.input_ids), prompt.plan.media_end
        return 0 if self.model.config.text.stretches(length) or end == length else end

    def _media(self, prompt: Prompt) -> list[_Medium]:
        """A prompt's images, then its videos: the k-th placeholder of a kind is the k-th medium of that kind."""
        sizes: tuple[Size | None, ...] = (*prompt.image_sizes, *(None for _ in prompt.pixels_videos))
        tokens = [*prompt.plan.media_of("image"), *prompt.plan.media_of("video")]
        hashes: list[str | None] = [None] * len(tokens)
        if self.store is not None:
            hashes = [*prompt.pixel_hashes["image"], *prompt.pixel_hashes["video"]]
        pixels = (*prompt.pixels_images, *prompt.pixels_videos)
        return [
            _Medium(medium.kind, own, medium.num_tokens, size, pixel_hash)
            for medium, own, size, pixel_hash in zip(tokens, pixels, sizes, hashes, strict=True)
        ]

    def _key(self, what: str, *content: object) -> str:
        """SHA-256 of everything that decides an entry, as plain data."""
        place = self.device.type
        switches = [
            torch.is_autocast_enabled(place) and str(torch.get_autocast_dtype(place)),
            torch.get_float32_matmul_precision(),
        ]
        return hashlib.sha256(json.dumps([what, self._made_by, switches, *content]).encode()).hexdigest()

    def _visual_tokens(self, media: Sequence[_Medium]) -> tuple[list[Tensor] | None, list[Tensor] | None]:
        """The visual tokens (_, D) of images and of videos, None where there are none of a kind."""
        images, videos = (
            [self._tokens(medium) for medium in media if medium.kind == kind] for kind in ("image", "video")
        )
        return images or None, videos or None

    def _tokens(self, medium: _Medium) -> Float[Tensor, "_ D"]:
        if self.store is None:
            return self._encode(medium)
        key = self._key("medium", medium.content)
        shape = (medium.num_tokens, self.model.config.text.hidden_size)
        found = self.store.get(key, {"tokens": (shape, self.dtype)})
        if found is not None:
            return found["tokens"].to(self.device)
        tokens_RD = self._encode(medium)
        self.store.put(key, {"tokens": tokens_RD.to("cpu", copy=True)})
        return tokens_RD

    def _encode(self, medium: _Medium) -> Float[Tensor, "_ D"]:
        pixels = medium.pixels.to(self.device, self.dtype)
        if medium.kind == "video":
            return self.model.encode_videos(pixels[None])[0]
        return self.model.image_tokens(pixels, torch.tensor([medium.size]))[0]


class ModelState:
    """What a model was when this was made: where its weights are, how often each was written to, a few values of each
    (writing to `.data` does not count as writing), its hooks, its modules' attributes (`activation`, `eps`,
    `training`) and `forward` methods.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        by_dtype: dict[torch.dtype, list[Tensor]] = {}
        for parameter in model.parameters():
            # A quarter down, the beginning of a row: there the weights' hash has read the file (`checkpoint.digest`).
            row = parameter.detach()[tuple(size // 4 for size in parameter.shape[:-1])].reshape(-1)
            row = row[: BLOCK_BYTES // 2 // row.element_size()]
            step = max(1, len(row) // _SAMPLES)
            by_dtype.setdefault(parameter.dtype, []).append(row[step // 2 :: step])
        self._samples = [*by_dtype.values()]  # views: they show what is there now
        self._places, self._content = _places(model), self._read()

    def holds(self, model: nn.Module) -> bool:
        """Whether `model` is the same, and as it was: a hook that was taken away again changes nothing."""
        if model is not self.model or _places(model) != self._places:
            self._samples = []  # they would keep weights in memory that nobody else may need
            return False
        return self._read() == self._content

    def _read(self) -> tuple[object, ...]:
        values = [torch.cat(views).cpu().view(torch.uint8).numpy().tobytes() for views in self._samples]
        modules = [*self.model.modules()]
        settings, methods = [_settings(m) for m in modules], {type(m): type(m).forward for m in modules}
        return values, hook_numbers(self.model), settings, methods


def _settings(module: nn.Module) -> list[tuple[str, object]]:
    """The attributes of a module itself: plain values, and which object any other is."""
    own = ((name, value) for name, value in vars(module).items() if not name.startswith("_") and name not in _ASIDE)
    return [(name, value if isinstance(value, int | float | str) else id(value)) for name, value in own]


def _places(model: nn.Module) -> list[tuple[int, int]]:
    """Where each parameter is and how often it was written to, which tensors made in inference mode do not count."""
    own = (p for module in model.modules() for p in module._parameters.values() if p is not None)
    return [(p.data_ptr(), 0 if p.is_inference() else p._version) for p in own]


def memory_limit(model: VideoLlavaForGeneration, frames: int) -> int:
    """Bytes of memory for what has been read: `MEMORY_BYTES`, and no less than a clip of `frames` frames takes."""
    config, text = model.config, model.config.text
    if config.video_token_id is None:
        return MEMORY_BYTES
    works_in = model.text_tower.compute_dtype
    visual, kept = config.clip_tokens(frames), model.kv_dtype or works_in
    beginning = kv_cache_bytes(text, 1, visual + _WORDS, kept.itemsize)
    return max(MEMORY_BYTES, beginning + visual * text.hidden_size * works_in.itemsize)


@cache
def program_hash(folders: tuple[str, ...] = _PROGRAM) -> str:
    """SHA-256 of the code that what is remembered depends on: who changes it reads anew. `folders` of the package."""
    package, digest = Path(__file__).parents[1], hashlib.sha256()
    for path in sorted(path for name in folders for path in (package / name).iterdir() if path.is_file()):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()
