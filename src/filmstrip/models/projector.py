"""The projector: from the vision towers' width to the text model's (LLaVA-1.5, Liu et al. 2023)."""

from torch import nn

from filmstrip.config import ModelConfig
from filmstrip.ops.activation import get_activation
from filmstrip.shapes import Float, Tensor


class Projector(nn.Module):
    """`linear_2(act(linear_1(x)))`, one for images and videos."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, bias = config.text.hidden_size, config.projector.bias
        self.linear_1 = nn.Linear(config.projector_input_size, width, bias=bias)
        self.linear_2 = nn.Linear(width, width, bias=bias)
        self.activation = get_activation(config.projector.activation)

    def forward(self, x: Float[Tensor, "*tokens E"]) -> Float[Tensor, "*tokens D"]:
        """Project each visual token on its own."""
        return self.linear_2(self.activation(self.linear_1(x)))
