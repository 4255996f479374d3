"""What `torch.compile` needs of the machine, asked for before a run and not in the middle of it."""

import torch

from filmstrip.errors import ConfigError


def require_compiler(device: torch.device) -> None:
    """Raise `ConfigError` where `torch.compile` cannot work: on a CPU it makes C++ and finds no compiler for it."""
    if device.type != "cpu":
        return
    from torch._inductor.cpp_builder import get_cpp_compiler  # slow to import, and needed then anyway

    try:
        get_cpp_compiler()
    except RuntimeError as error:
        raise ConfigError(
            "torch.compile needs a C++ compiler and found none: install one (Debian: apt install g++), "
            "name it in the variable CXX, or go on uncompiled"
        ) from error
