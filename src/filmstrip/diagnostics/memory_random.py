"""A model with random weights and a batch of random inputs, to be measured."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from filmstrip.api.load import DTYPES
from filmstrip.config import ModelConfig, VisionConfig
from filmstrip.diagnostics.memory_training import DROPOUT, LEARNS
from filmstrip.diagnostics.memory_workload import Extent, Workload
from filmstrip.inputs.collate import Batch
from filmstrip.models import VideoLlava
from filmstrip.models.weightless import build_meta
from filmstrip.models.wide import widen
from filmstrip.shapes import Float, Tensor

_MOST_PADDING = 4  # positions of the first row that are padding


@dataclass
class RandomModel:
    """A model ready to run."""

    model: VideoLlava


@dataclass
class TrainingModel(RandomModel):
    """A model ready to learn: which parameters do, and AdamW over them with its averages in place."""

    learning: list[nn.Parameter]
    optimizer: torch.optim.Optimizer

    @property
    def optimizer_bytes(self) -> int:
        """Bytes of the two averages."""
        return sum(state[name].nbytes for state in self.optimizer.state.values() for name in ("exp_avg", "exp_avg_sq"))


class LowRankLinear(nn.Module):
    """A frozen linear layer and its adapter: `base(x) + B(A(dropout(x))) * scale` (Hu et al. 2021)."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base
        device = base.weight.device
        self.down = nn.Linear(base.in_features, rank, bias=False, device=device)
        self.up = nn.Linear(rank, base.out_features, bias=False, device=device)

    def forward(self, x: Float[Tensor, "*rows in"]) -> Float[Tensor, "*rows out"]:
        """The layer's result, adapted."""
        update = self.up(self.down(functional.dropout(x.to(self.down.weight.dtype), DROPOUT)))
        return self.base(x) + update * 2.0


def random_model(config: ModelConfig, workload: Workload, device: torch.device) -> RandomModel:
    """Build and fill a model as the workload wants it; with training, also its optimizer."""
    model = build_meta(config)
    assert isinstance(model, VideoLlava)
    prefixes = LEARNS[workload.training] if workload.training else ()
    values: dict[nn.Parameter, nn.Parameter] = {}
    for name, empty in list(model.named_parameters(remove_duplicate=False)):
        learns = bool(prefixes) and name.startswith(prefixes)
        if empty not in values:
            dtype = torch.float32 if learns else DTYPES[workload.dtype]
            filled = torch.empty(empty.shape, dtype=dtype, device=device).normal_(std=0.02)
            values[empty] = nn.Parameter(filled, requires_grad=learns)
        owner, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(owner), attribute, values[empty])
    model.set_attention(workload.attention)
    if workload.training is None:
        if workload.arithmetic != workload.dtype:
            del values, filled  # what is widened is given back at once
            widen(model)
        model.kv_dtype = DTYPES[workload.kept]
        return RandomModel(model.eval())
    return _for_training(model.train(), workload)


def _for_training(model: VideoLlava, workload: Workload) -> TrainingModel:
    if workload.training == "lora":
        for block in model.text_tower.blocks:
            for part in (block.attention, block.mlp):
                for name, child in list(part.named_children()):  # type: ignore[union-attr]
                    setattr(part, name, LowRankLinear(child, workload.lora_rank))
    if workload.checkpointing:
        towers = [model.text_tower, *([model.image_tower, model.video_tower] if workload.training == "full" else [])]
        blocks: list[nn.Module] = [block for tower in towers for block in tower.blocks]  # type: ignore[union-attr]
        for block in dict.fromkeys(blocks):
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in learning if (p.ndim >= 2) == matrices]}
        for matrices in (True, False)
        if any((p.ndim >= 2) == matrices for p in learning)
    ]
    optimizer = torch.optim.AdamW(groups, foreach=True)
    for parameter in learning:
        optimizer.state[parameter] = {
            "step": torch.tensor(0.0),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
    return TrainingModel(model, learning, optimizer)


def random_inputs(config: ModelConfig, workload: Workload, extent: Extent, device: torch.device) -> Batch:
    """Ids with placeholders in front of the text's end, a mask, and pixels: what `collate` would give."""
    dtype, rows, length = DTYPES[workload.arithmetic], extent.batch, extent.length
    word = next(token for token in range(3) if token not in config.placeholder_ids.values())
    ids_BT = torch.full((rows, length), word, dtype=torch.long, device=device)
    images, videos = extent.image_tokens // rows, extent.video_tokens // rows
    text = length - images - videos
    ids_BT[:, text : text + images] = config.image_token_id
    if config.video_token_id is not None:
        ids_BT[:, text + images :] = config.video_token_id
    mask_BT = torch.ones_like(ids_BT)
    mask_BT[0, : max(0, min(_MOST_PADDING, text - 1))] = 0
    size = workload.image_size or (config.image_tower.image_size,) * 2
    sizes = torch.tensor([size] * (rows * workload.images)) if workload.images else None

    def pixels(tower: VisionConfig, *lead: int) -> Tensor:
        shape = (*lead, tower.num_channels, tower.image_size, tower.image_size)
        return torch.empty(shape, dtype=dtype, device=device).normal_()

    return Batch(
        input_ids=ids_BT,
        attention_mask=mask_BT,
        pixel_values_images=pixels(config.image_tower, extent.tiles) if extent.tiles else None,
        pixel_values_videos=pixels(config.video_tower, extent.clips, extent.frames) if extent.clips else None,
        plans=(),
        image_sizes=sizes,
    )
