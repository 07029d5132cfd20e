"""Which processor computes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from sgan_core.errors import InputError

DEVICES = ("auto", "cpu", "cuda", "mps")


def choose_device(name: str) -> torch.device:
    """ "auto" takes CUDA, then Apple's MPS, then the CPU.

    Raises InputError when the device asked for is not there: no silent fallback.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "--device cuda: PyTorch finds no CUDA GPU here. Use --device cpu, or install a CUDA build of torch."
        )
    if name == "mps" and not torch.backends.mps.is_available():
        raise InputError("--device mps: PyTorch finds no Apple GPU here. Use --device cpu.")
    return torch.device(name)


def usable_devices() -> list[torch.device]:
    """The devices that can be asked for here, the CPU first."""
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    return [torch.device(name) for name in DEVICES if there.get(name)]


def has_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 itself (AVX512-BF16 or AMX); False where PyTorch is too old to say."""
    able: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def memory_gb(device: torch.device) -> float | None:
    """Memory of a CUDA GPU in GB (10^9 bytes); None for devices that share the computer's."""
    if device.type != "cuda":
        return None
    return round(torch.cuda.get_device_properties(device).total_memory / 1e9, 1)


def describe(device: torch.device) -> str:
    """The device in words, e.g. for a report."""
    if device.type == "cuda":
        return f"CUDA GPU {torch.cuda.get_device_name(device)}"
    if device.type == "mps":
        return "Apple GPU (MPS)"
    threads = torch.get_num_threads()
    return f"CPU, {threads} thread{'s' if threads > 1 else ''}"
