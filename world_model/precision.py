"""In which numbers matrices and convolutions are computed: bfloat16 where that is quicker, else float32."""

from __future__ import annotations

from functools import cache
from time import perf_counter

import torch
from torch.nn import functional as F

CLEARLY = 0.8
"""float32 is taken where it needs at most so much of the time: a machine must not waver between the two."""
ROUNDS = 7


def native_dtype(device: str) -> torch.dtype:
    """bfloat16 or float32, whichever is quicker: emulated, bfloat16 is a hundred times slower, and even some
    processors that have it (Intel's without AMX) are twice as quick without."""
    if device != "cpu":
        return torch.bfloat16
    native = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return _quicker(torch.get_num_threads()) if native() else torch.float32


@cache
def _quicker(threads: int) -> torch.dtype:
    taken = {dtype: _seconds(dtype) for dtype in (torch.bfloat16, torch.float32)}
    return torch.float32 if taken[torch.float32] < CLEARLY * taken[torch.bfloat16] else torch.bfloat16


@torch.no_grad()
def _seconds(dtype: torch.dtype) -> float:
    """Of a convolution such as a tick consists of, at best."""
    x = torch.ones(1, 64, 40, 64, dtype=dtype).contiguous(memory_format=torch.channels_last)
    kernel = torch.ones(64, 64, 3, 3, dtype=dtype).contiguous(memory_format=torch.channels_last)
    best = float("inf")
    for _ in range(ROUNDS):
        began = perf_counter()
        F.conv2d(x, kernel, padding=1)
        best = min(best, perf_counter() - began)
    return best


def mixed_precision(device: str) -> torch.autocast:
    """While inside, matrices and convolutions of float32 modules are computed in the native dtype."""
    dtype = native_dtype(device)
    return torch.autocast(device, torch.bfloat16, enabled=dtype != torch.float32)
