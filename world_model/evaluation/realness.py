"""Can a small classifier tell dreams from the real game? 50 % means that it cannot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from world_model.evaluation.protocol import Clip, Dreamer, batched, dream
from world_model.evaluation.stats import mean_interval
from world_model.evaluation.windows import HeldOut, windows
from world_model.types import DataError

CLIP_TICKS = (40, 80)
"""1.6 and 3.2 seconds."""

LOOKS = 8
"""Pairs of neighbouring frames that the classifier sees of a clip, spread evenly."""

SIZE = (80, 128)


class Judge(nn.Module):
    """Pairs of frames (N, LOOKS, 6, 80, 128) to one logit a clip: above zero means dreamed."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i, o in ((6, 16), (16, 32), (32, 32)):
            layers += [nn.Conv2d(i, o, 3, stride=2, padding=1), nn.GroupNorm(4, o), nn.SiLU()]
        self.net = nn.Sequential(*layers)
        self.out = nn.Linear(64, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.net(x.flatten(0, 1)).flatten(2)
        h = torch.cat([h.mean(2), h.std(2)], 1)  # texture statistics, not places
        return self.out(h.view(len(x), -1, 64).mean(1))[:, 0]


def real_or_dream(
    dreamer: Dreamer,
    data: HeldOut,
    count: int = 48,
    steps: int = 200,
    seed: int = 0,
    batch: int = 16,
    lengths: Sequence[int] = CLIP_TICKS,
) -> dict[str, Any]:
    """Accuracy on held-out clips of `lengths` ticks, half of them dreamed, with a check on itself.

    Even episodes train the classifier, odd ones test it; `count` real and `count` dreamed clips on each
    side, from windows drawn apart. `check` trains the same classifier on real against real: about 0.5,
    or the method is at fault. Raises DataError with fewer than two held-out episodes.
    """
    if len(data.episodes) < 2:
        raise DataError("telling real from dream needs two held-out episodes: one to learn, one to test")
    halves = [HeldOut(data.names[i::2], data.episodes[i::2]) for i in (0, 1)]
    result: dict[str, Any] = {}
    for ticks in lengths:
        sets = [[windows(h, ticks, count, False, seed=seed + k) for k in (0, 1, 2)] for h in halves]
        real = [_looks_real(s[0]) for s in sets]
        dreamed = [_looks_dreamed(dreamer, s[1], batch) for s in sets]
        again = [_looks_real(s[2]) for s in sets]
        names = [[c.episode for c in s[0]] + [c.episode for c in s[1]] for s in sets][1]
        result[str(ticks)] = {
            "accuracy": mean_interval(_trial(real, dreamed, steps, seed), names),
            "check": mean_interval(_trial(real, again, steps, seed), names),
        }
    return result


def _trial(real: Sequence[Tensor], other: Sequence[Tensor], steps: int, seed: int) -> NDArray[np.float64]:
    """Trains on the first halves; whether each clip of the second halves is told right."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        judge = Judge()
    x = torch.cat([real[0], other[0]])
    y = torch.cat([torch.zeros(len(real[0])), torch.ones(len(other[0]))])
    optimiser = torch.optim.AdamW(judge.parameters(), lr=2e-3, weight_decay=1e-2)
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        pick = torch.from_numpy(rng.integers(len(x), size=8))
        loss = F.binary_cross_entropy_with_logits(judge(x[pick]), y[pick])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        right = torch.cat([judge(real[1]) < 0, judge(other[1]) > 0])
    return right.double().numpy()


def _ticks(clip: Clip) -> list[int]:
    return [int(k) for k in np.linspace(2, clip.ticks, LOOKS)]


def _looks_real(clips: Sequence[Clip]) -> Tensor:
    return torch.stack([torch.stack([_pair(c.real(k - 1), c.real(k)) for k in _ticks(c)]) for c in clips])


def _looks_dreamed(dreamer: Dreamer, clips: Sequence[Clip], batch: int) -> Tensor:
    looks = []
    for group in batched(clips, batch):
        wanted, pairs, last = _ticks(group[0]), [], None
        painted = {*wanted, *(k - 1 for k in wanted)}
        for k, images in enumerate(dream(dreamer, group, painted=painted)):
            if k in wanted and last is not None:
                pairs.append(torch.stack([_pair(a, b) for a, b in zip(last, images, strict=True)]))
            last = images.copy()
        looks.append(torch.stack(pairs, 1))
    return torch.cat(looks)


def _pair(before: NDArray[np.uint8], after: NDArray[np.uint8]) -> Tensor:
    """(6, 80, 128): a frame and its change, every other pixel so that sharpness stays visible."""
    a, b = (torch.from_numpy(i.copy()).permute(2, 0, 1).float()[None] / 127.5 - 1 for i in (before, after))
    both = torch.cat([b, b - a], 1)
    return F.interpolate(both, SIZE, mode="nearest")[0]
