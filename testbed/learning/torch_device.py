"""Chooses the device on which torch computes, for all learning code."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from testbed.core.errors import InputError

CHOICES = ("auto", "cpu", "cuda")
VARIABLE = "TESTBED_TORCH_DEVICE"
"""Environment variable that contains one of the choices, for machines whose GPU is needed by other users."""


def pick(choice: str = "auto") -> str:
    """Return "cuda" or "cpu"; "auto" follows the environment variable, or else takes a GPU if there is one.

    Raises InputError for another word, or if "cuda" is asked for and there is no GPU.
    """
    if choice == "auto":
        choice = os.environ.get(VARIABLE) or "auto"
    if choice not in CHOICES:
        raise InputError(f"torch device {choice!r}, accepted: {', '.join(CHOICES)}")
    if choice == "cpu":
        return "cpu"
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if choice == "cuda":
        raise InputError("torch device 'cuda': this torch sees no GPU; accepted here: auto, cpu")
    return "cpu"


@contextmanager
def flushed() -> Iterator[None]:
    """Treat denormal numbers as 0 in the block: inactive units' gradient averages become denormal, which slows Adam."""
    import torch

    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
