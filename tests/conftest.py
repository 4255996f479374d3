"""Shared fixtures. Everything runs offline, on the CPU, with a fixed seed and one thread."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("FILMSTRIP_KERNELS", "wait")
os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # as the command line does

import pytest
import torch


@pytest.fixture(autouse=True)
def _deterministic() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
