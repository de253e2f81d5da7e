"""Muon for the hidden matrices and kernels, AdamW for everything else, as one optimiser.

Muon (Keller Jordan, 2024): momentum, then an approximate orthogonalisation of the update by five
Newton-Schulz steps. `torch.optim.Muon` takes matrices alone; convolution kernels, flattened to
(out, in * k * k), gain as much, so the step is written here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from world_model.precision import native_dtype


class Muon(torch.optim.Optimizer):
    """Orthogonalised momentum with Nesterov look-ahead and decoupled weight decay."""

    def __init__(
        self, params: list[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                buffer = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
                buffer.lerp_(p.grad, 1 - group["momentum"])
                update = p.grad.lerp(buffer, group["momentum"]).flatten(1)
                p.mul_(1 - group["lr"] * group["weight_decay"])
                scale = max(1.0, update.shape[0] / update.shape[1]) ** 0.5
                p.add_(orthogonalise(update).view_as(p), alpha=-group["lr"] * scale)


def orthogonalise(update: Tensor, steps: int = 5) -> Tensor:
    """Pushes the singular values of a matrix towards one (quintic Newton-Schulz iteration, in bfloat16
    where that is fast)."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = update.to(native_dtype(update.device.type))
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.T if tall else x).to(update.dtype)


class Optimizer:
    """AdamW and Muon stepping together under one schedule factor, with a flat state for checkpoints."""

    def __init__(self, parts: list[torch.optim.Optimizer]) -> None:
        self._parts = parts
        self._rates = [[group["lr"] for group in part.param_groups] for part in parts]

    def zero_grad(self) -> None:
        for part in self._parts:
            part.zero_grad(set_to_none=True)

    def step(self, factor: float) -> None:
        for part, rates in zip(self._parts, self._rates, strict=True):
            for group, rate in zip(part.param_groups, rates, strict=True):
                group["lr"] = rate * factor
            part.step()

    def tensors(self) -> dict[str, Tensor]:
        """All state tensors under names that `load` understands."""
        return {
            f"{i}/{index}/{key}": torch.as_tensor(value)
            for i, part in enumerate(self._parts)
            for index, state in part.state_dict()["state"].items()
            for key, value in state.items()
        }

    def load(self, tensors: dict[str, Tensor]) -> None:
        for i, part in enumerate(self._parts):
            state: dict[int, dict[str, Tensor]] = {}
            for name, value in tensors.items():
                which, index, key = name.split("/")
                if int(which) == i:
                    state.setdefault(int(index), {})[key] = value
            part.load_state_dict({"state": state, "param_groups": part.state_dict()["param_groups"]})


def build_optimizer(model: nn.Module, lr: float, muon_lr: float, weight_decay: float) -> Optimizer:
    """Kernels and matrices between hidden layers to Muon when `muon_lr` > 0, the rest to AdamW.

    No weight decay on vectors, nor on Mamba's A_log, dt_bias and D. A parameter with an attribute `rate` is
    an entry of a table that few examples touch: its own multiple of the learning rate, and no weight decay.
    """
    hidden, plain, vectors = [], [], []
    tables: dict[float, list[nn.Parameter]] = {}
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        if hasattr(p, "rate"):
            tables.setdefault(p.rate, []).append(p)
        elif p.ndim < 2 or getattr(p, "_no_weight_decay", False):
            vectors.append(p)
        elif muon_lr > 0 and "embed" not in name and min(p.shape[0], p[0].numel()) >= 16:
            hidden.append(p)
        else:
            plain.append(p)
    groups: list[dict[str, Any]] = [
        {"params": plain, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
        *({"params": t, "weight_decay": 0.0, "lr": lr * rate, "eps": 1e-12} for rate, t in tables.items()),
    ]
    adamw = torch.optim.AdamW([g for g in groups if g["params"]], lr=lr, betas=(0.9, 0.95))
    parts: list[torch.optim.Optimizer] = [adamw]
    if hidden:
        parts.append(Muon(hidden, muon_lr, weight_decay=weight_decay))
    return Optimizer(parts)
