"""Convolutions whose kernels are in the order in which the processor reads them.

oneDNN puts the kernels of a convolution in order before each picture; a tick has some sixty convolutions in
bfloat16, most of them so small that this takes a quarter of their time. Here it is done once for each size of
picture. The numbers that come out are the same.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PackedConv2d(nn.Conv2d):
    """A convolution for inference; a plain one on another device, or in other numbers than bfloat16."""

    _packed: Tensor
    _of: tuple[torch.Size, int, int] | None = None

    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight
        if weight.dtype != torch.bfloat16 or weight.device.type != "cpu":
            return super().forward(input)
        x = input.to(weight.dtype)
        how = (_pair(self.padding), _pair(self.stride), _pair(self.dilation), self.groups)
        of = (x.shape, weight.data_ptr(), weight._version)
        if self._of != of:
            self._packed = torch.ops.mkldnn._reorder_convolution_weight(weight, *how, list(x.shape))
            self._of = of
        out: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x, self._packed, self.bias, *how, "none", [], ""
        )
        return out


def _pair(numbers: tuple[int, ...] | str) -> list[int]:
    assert not isinstance(numbers, str)
    return list(numbers)


def pack(model: nn.Module) -> None:
    """Makes all convolutions of a model packed ones, where this PyTorch can: the operators are those of its
    own compiler, and nothing promises them."""
    needed = ("_reorder_convolution_weight", "_convolution_pointwise")
    if not torch.backends.mkldnn.is_available() or not all(hasattr(torch.ops.mkldnn, n) for n in needed):
        return
    for module in model.modules():
        if type(module) is nn.Conv2d and module.padding_mode == "zeros" and isinstance(module.padding, tuple):
            module.__class__ = PackedConv2d
