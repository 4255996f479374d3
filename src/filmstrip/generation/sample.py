"""How the next token is chosen from the logits. Filters and their order follow transformers."""

from collections.abc import Sequence

import torch

from filmstrip.config import SamplingConfig
from filmstrip.errors import FilmstripError
from filmstrip.shapes import Bool, Float, Int, Tensor

# Below it the division leaves float32; any difference of logits has then long decided the draw.
LEAST_TEMPERATURE = 1e-30


def sample_tokens(
    logits_BW: Float[Tensor, "B W"],
    sampling: SamplingConfig,
    seen_BW: Bool[Tensor, "B W"],
    generators: Sequence[torch.Generator],
) -> Int[Tensor, "B"]:
    """One token per row: the best (temperature 0), or a draw from the filtered distribution.

    `seen_BW` marks the tokens of each row's prompt and answer, for the repetition penalty. Each row draws from its
    own generator, so a row's tokens do not depend on its neighbours. Raises `FilmstripError` for logits that are not
    numbers.
    """
    logits_BW = logits_BW.float()
    if not bool(logits_BW.amax(dim=-1).isfinite().all()):
        raise FilmstripError(
            "the model's logits are not numbers (NaN or infinite): weights are damaged, or float16 has overflowed"
        )
    if sampling.repetition_penalty != 1.0:
        logits_BW = penalise_repetition(logits_BW, seen_BW, sampling.repetition_penalty)
    if sampling.temperature == 0.0:
        return logits_BW.argmax(dim=-1)
    # The best logit becomes 0 first: divided by a tiny temperature it would overflow, and softmax does not mind.
    scaled_BW = (logits_BW - logits_BW.amax(dim=-1, keepdim=True)) / max(sampling.temperature, LEAST_TEMPERATURE)
    probabilities_BW = filter_logits(scaled_BW, sampling).softmax(dim=-1)
    draws = [
        torch.multinomial(row_W, 1, generator=generator)
        for row_W, generator in zip(probabilities_BW, generators, strict=True)
    ]
    return torch.cat(draws)


def penalise_repetition(
    logits_BW: Float[Tensor, "B W"], seen_BW: Bool[Tensor, "B W"], penalty: float
) -> Float[Tensor, "B W"]:
    """Divide positive and multiply negative logits of tokens already present (Keskar et al. 2019)."""
    penalised_BW = torch.where(logits_BW > 0, logits_BW / penalty, logits_BW * penalty)
    return torch.where(seen_BW, penalised_BW, logits_BW)


def filter_logits(logits_BW: Float[Tensor, "B W"], sampling: SamplingConfig) -> Float[Tensor, "B W"]:
    """Set to -inf what top-k, top-p (Holtzman et al. 2020) and min-p (Nguyen et al. 2024) exclude, in that order.

    The most likely token always stays.
    """
    if 0 < sampling.top_k < logits_BW.shape[-1]:
        least_B1 = logits_BW.topk(sampling.top_k, dim=-1).values[:, -1:]
        logits_BW = logits_BW.masked_fill(logits_BW < least_B1, -torch.inf)
    if sampling.top_p < 1.0:
        # From the least likely up, as transformers does it, so that ties and roundings fall the same way.
        sorted_BW, order_BW = logits_BW.sort(dim=-1)
        drop_sorted_BW = sorted_BW.softmax(dim=-1).cumsum(dim=-1) <= 1 - sampling.top_p
        drop_sorted_BW[:, -1] = False
        drop_BW = drop_sorted_BW.scatter(-1, order_BW, drop_sorted_BW)
        logits_BW = logits_BW.masked_fill(drop_BW, -torch.inf)
    if sampling.min_p > 0.0:
        probabilities_BW = logits_BW.softmax(dim=-1)
        least_B1 = sampling.min_p * probabilities_BW.amax(dim=-1, keepdim=True)
        logits_BW = logits_BW.masked_fill(probabilities_BW < least_B1, -torch.inf)
    return logits_BW
