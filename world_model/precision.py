"""In which numbers matrices and convolutions are computed: bfloat16 only where that is quicker."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

import torch


@cache
def native_dtype(device: str) -> torch.dtype:
    """bfloat16 where the processor is quicker with it, else float32.

    Emulated, bfloat16 is a hundred times slower. Intel's processors that have it without AMX, in AVX512,
    take 1.8 times as long as in float32 (LOG.md). A rule, not a measurement: under load that would waver, and
    the same dream must come out the same.
    """
    if device != "cpu":
        return torch.bfloat16
    has = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    tiles = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    return torch.bfloat16 if has() and (tiles() or not _by_intel()) else torch.float32


def _by_intel() -> bool:
    try:
        told = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        told = platform.processor()
    return "GenuineIntel" in told


def mixed_precision(device: str) -> torch.autocast:
    """While inside, matrices and convolutions of float32 modules are computed in the native dtype."""
    dtype = native_dtype(device)
    return torch.autocast(device, torch.bfloat16, enabled=dtype != torch.float32)
