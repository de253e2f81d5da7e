"""What the status bar says: a small classifier that reads numbers off real pictures, and off dreamed ones.

A field is a box of the picture with up to three digits, flush right, blanks before them. N pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from world_model.evaluation.events import Box, crop

DIGITS, CLASSES, BLANK = 3, 11, 10
SURE = 0.9
"""Probability that each digit needs for a field to count as legible."""


class Reading(NamedTuple):
    """Values (N,) that a field shows, and whether each can be read at all (N,)."""

    value: NDArray[np.int64]
    legible: NDArray[np.bool_]


class DigitReader(nn.Module):
    """Reads any field of one size: float pictures (N, 3, h, w) -> logits (N, DIGITS, CLASSES)."""

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        inner = 32 * ((height + 1) // 2) * ((width + 1) // 2)
        self.net = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.GroupNorm(4, 32),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(inner, 64),
            nn.SiLU(),
            nn.Linear(64, DIGITS * CLASSES),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x).unflatten(1, (DIGITS, CLASSES))
        return out

    @torch.no_grad()
    def read(self, pictures: NDArray[np.uint8], field: Box) -> Reading:
        """The number in `field` of pictures (N, H, W, 3). Digits that make no number count as illegible."""
        chance = self(_field(pictures, field)).softmax(-1)
        sure, digit = chance.max(-1)
        digits = digit.numpy()
        blank = digits == BLANK
        number = ~blank[:, -1] & (np.diff(blank.astype(np.int8), axis=1) <= 0).all(1)
        value = (np.where(blank, 0, digits) * 10 ** np.arange(DIGITS)[::-1]).sum(1)
        return Reading(value, number & (sure.numpy() >= SURE).all(1))


def train_reader(
    pictures: Sequence[NDArray[np.uint8]],
    fields: Sequence[Box],
    values: Sequence[NDArray[np.int64]],
    steps: int = 600,
    seed: int = 0,
) -> DigitReader:
    """Trains on real pictures (N, H, W, 3) of the part `fields[i]`, with the numbers `values[i]` (N,) there.

    All fields must have one size. Numbers below 0 are shown as 0.
    """
    x = torch.cat([_field(p, f) for p, f in zip(pictures, fields, strict=True)])
    y = torch.from_numpy(np.concatenate([digits_of(v) for v in values]))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        reader = DigitReader(x.shape[2], x.shape[3])
    optimiser = torch.optim.AdamW(reader.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        pick = torch.from_numpy(rng.integers(len(x), size=128))
        loss = F.cross_entropy(reader(x[pick]).flatten(0, 1), y[pick].flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return reader.eval()


def digits_of(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Numbers (N,) as digits (N, DIGITS), BLANK before the first."""
    shown = np.clip(values, 0, 10**DIGITS - 1).astype(np.int64)
    powers = 10 ** np.arange(DIGITS)[::-1]
    digits = shown[:, None] // powers % 10
    blank = (shown[:, None] < powers) & (powers > 1)
    return np.asarray(np.where(blank, BLANK, digits))


def _field(pictures: NDArray[np.uint8], field: Box) -> Tensor:
    """Float (N, 3, h, w), each picture's own mean and spread taken out: pain and pickups tint the screen."""
    x = torch.from_numpy(np.array(crop(pictures, field))).permute(0, 3, 1, 2).float()
    return (x - x.mean((1, 2, 3), keepdim=True)) / x.std((1, 2, 3), keepdim=True).clamp(min=1.0)
