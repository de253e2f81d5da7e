"""In which numbers matrices and convolutions are computed: bfloat16 only where the processor has it."""

from __future__ import annotations

import torch


def native_dtype(device: str) -> torch.dtype:
    """bfloat16 where the processor computes it natively, float32 elsewhere: emulated, it is a hundred times
    slower."""
    if device != "cpu":
        return torch.bfloat16
    native = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return torch.bfloat16 if native() else torch.float32


def mixed_precision(device: str) -> torch.autocast:
    """While inside, matrices and convolutions of float32 modules are computed in the native dtype."""
    dtype = native_dtype(device)
    return torch.autocast(device, torch.bfloat16, enabled=dtype != torch.float32)
