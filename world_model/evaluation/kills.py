"""How many monsters fall in a stretch of pictures: a probe that is trained on real ones, where it is known.

It gives the probability that one fell within a span of SPAN ticks, from pictures before, within and after
it. Summed over spans that is a count; on real held-out play it stands beside the true one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from world_model.types import DataError

SPAN = 8
LOOKS = (-2, 3, 8, 14)
"""Ticks of a span's pictures, counted from its beginning: a monster takes a third of a second to fall."""
REACH = LOOKS[-1] - LOOKS[0] + 1
SIZE = (40, 64)
VIEW_ROWS = 132


class KillProbe(nn.Module):
    """Spans (N, 3 * looks, h, w) -> logits (N,)."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i, o in ((3 * len(LOOKS), 32), (32, 48), (48, 64)):
            layers += [nn.Conv2d(i, o, 3, stride=2, padding=1), nn.GroupNorm(4, o), nn.SiLU()]
        self.net = nn.Sequential(
            *layers, nn.Flatten(), nn.Dropout(0.3), nn.Linear(64 * 5 * 8, 64), nn.SiLU(), nn.Linear(64, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)[:, 0]
        return out

    @torch.no_grad()
    def count(self, small: Tensor) -> float:
        """Kills expected in a stretch of `small_views` (T, 3, h, w), span after span; see `counted`."""
        return float(
            self(torch.stack([_looks(small, start) for start in starts(len(small))])).sigmoid().sum()
        )


def starts(length: int) -> list[int]:
    """First ticks of the spans of a stretch of so many pictures."""
    return list(range(-LOOKS[0], length - LOOKS[-1], SPAN))


def counted(kills: NDArray[np.int32]) -> int:
    """Spans of a stretch, of kill counts (T,), in which a monster fell: what `KillProbe.count` estimates."""
    return sum(bool(kills[start + SPAN] > kills[start]) for start in starts(len(kills)))


def small_views(pictures: NDArray[np.uint8]) -> Tensor:
    """uint8 (T, H, W, 3) without the status bar -> uint8 (T, 3, h, w)."""
    x = torch.from_numpy(np.array(pictures[:, :VIEW_ROWS])).permute(0, 3, 1, 2).float()
    return F.adaptive_avg_pool2d(x, SIZE).round().to(torch.uint8)


def train_kill_probe(
    stretches: Sequence[tuple[Tensor, NDArray[np.int32]]], steps: int = 1200, seed: int = 0
) -> KillProbe:
    """Trains on stretches of real `small_views` (T, 3, h, w) with kill counts (T,).

    Raises DataError when nobody falls in them.
    """
    rows = [
        (i, t) for i, (_, kills) in enumerate(stretches) for t in range(-LOOKS[0], len(kills) - LOOKS[-1])
    ]
    fell = np.array([stretches[i][1][t + SPAN] > stretches[i][1][t] for i, t in rows])
    if not fell.any():
        raise DataError("nobody falls in the training episodes, so a probe for kills cannot be trained")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        probe = KillProbe()
        optimiser = torch.optim.AdamW(probe.parameters(), lr=1e-3, weight_decay=5e-2)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        rng = np.random.default_rng(seed)
        for _ in range(steps):
            pick = rng.integers(len(rows), size=64)
            x = torch.stack([_looks(stretches[rows[j][0]][0], rows[j][1]) for j in pick])
            x = torch.where(torch.rand(len(x), 1, 1, 1) < 0.5, x, x.flip(-1))
            loss = F.binary_cross_entropy_with_logits(probe(x), torch.from_numpy(fell[pick]).float())
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return probe.eval()


def _looks(small: Tensor, start: int) -> Tensor:
    return torch.cat([small[start + look] for look in LOOKS]).float() / 127.5 - 1
