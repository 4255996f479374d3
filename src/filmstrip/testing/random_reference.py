"""The reference implementation with random weights, for tests."""

from typing import Any

import torch

from filmstrip.testing.tiny import random_tensor


def reference_model(config: dict[str, Any], *, seed: int = 0) -> Any:
    """A float32 reference of the family `config` names, in eval mode, every weight random (norms and biases too)."""
    from filmstrip.oracle.reference import build_reference

    generator = torch.Generator().manual_seed(seed)
    model = build_reference(config)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            parameter.copy_(random_tensor(name, tuple(parameter.shape), generator))
    return model
