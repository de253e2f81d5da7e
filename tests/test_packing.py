"""Packed convolutions are plain ones, but for the time they take."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from world_model import packing
from world_model.packing import PackedConv2d, pack

CL = torch.channels_last


def convolution(dtype: torch.dtype = torch.bfloat16, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    torch.manual_seed(0)
    layer = nn.Conv2d(24, 16, 3, stride=stride, padding=dilation, dilation=dilation)
    return nn.Sequential(layer).to(dtype).to(memory_format=CL).requires_grad_(False)  # type: ignore[call-overload]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 2)])
def test_what_comes_out_is_the_same(dtype: torch.dtype, stride: int, dilation: int) -> None:
    plain, packed = (convolution(dtype, stride, dilation) for _ in range(2))
    pack(packed)
    assert isinstance(packed[0], PackedConv2d)
    for size in ((1, 24, 10, 16), (3, 24, 6, 8), (1, 24, 10, 16)):  # packed anew for each size
        x = torch.randn(size).to(dtype).contiguous(memory_format=CL)
        torch.testing.assert_close(packed(x), plain(x))


def test_new_weights_count() -> None:
    packed, x = convolution(), torch.randn(1, 24, 10, 16)
    pack(packed)
    before = packed(x)
    assert before.dtype == torch.bfloat16
    packed[0].weight.mul_(2)
    packed[0].bias.mul_(2)
    torch.testing.assert_close(packed(x), 2 * before)
    packed.to(torch.float32)
    assert packed(x).dtype == torch.float32


def test_without_these_operators_a_convolution_stays_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    class Ops:
        mkldnn = object()

    monkeypatch.setattr(packing.torch, "ops", Ops)
    plain = convolution()
    pack(plain)
    assert type(plain[0]) is nn.Conv2d
