"""How many monsters fall in a stretch of pictures: a probe that is trained on real ones, where it is known.

It gives the probability that one fell within a span of SPAN ticks, from pictures before, within and after
it. Summed over spans that is a count. Half of what it learns from are spans in which nobody falls as a
monster does: frozen ones, ones that run backwards, pictures of other moments. Without them a probe gives
the usual number of kills for whatever it does not know. What it makes of such pictures of held-out play
stands beside its figures (`check`), and no figure is given that does not stand out from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from world_model.types import FPS, DataError

SPAN = 8
LOOKS = (-2, 3, 8, 14)
"""Ticks of a span's pictures, counted from its beginning: a monster takes a third of a second to fall."""
ROWS, COLUMNS = slice(34, 130), slice(64, 192)
"""What is looked at: a pistol shoots straight ahead, so monsters fall in the middle of the picture."""
BATCH = 64
MINUTE = 60 * FPS
"""Ticks."""


class KillProbe(nn.Module):
    """Spans (N, 3 * looks, h, w) -> logits (N,)."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i, o in ((3 * len(LOOKS), 32), (32, 48), (48, 64)):
            layers += [nn.Conv2d(i, o, 3, stride=2, padding=1), nn.GroupNorm(4, o), nn.SiLU()]
        self.net = nn.Sequential(
            *layers, nn.Flatten(), nn.Dropout(0.3), nn.Linear(64 * 6 * 8, 64), nn.SiLU(), nn.Linear(64, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)[:, 0]
        return out

    @torch.no_grad()
    def count(self, small: Tensor) -> float:
        """Kills expected in the spans of a stretch of `small_views` (T, 3, h, w); see `covered`."""
        first = starts(len(small))
        if not first:
            return 0.0
        return float(self(torch.stack([_looks(small, start) for start in first])).sigmoid().sum())


def starts(length: int) -> list[int]:
    """First ticks of the spans of a stretch of so many pictures."""
    return list(range(-LOOKS[0], length - LOOKS[-1], SPAN))


def covered(length: int) -> int:
    """Ticks of a stretch of so many pictures that lie in its spans: the ends do not."""
    return SPAN * len(starts(length))


def small_views(pictures: NDArray[np.uint8]) -> Tensor:
    """uint8 (T, H, W, 3) -> uint8 (T, 3, h, w), the middle of it at half the size."""
    x = torch.from_numpy(np.ascontiguousarray(pictures[:, ROWS, COLUMNS])).permute(0, 3, 1, 2).float()
    return F.avg_pool2d(x, 2).round().to(torch.uint8)


def train_kill_probe(
    stretches: Sequence[tuple[Tensor, NDArray[np.int32]]], steps: int = 1000, seed: int = 0
) -> KillProbe:
    """Trains on stretches of real `small_views` (T, 3, h, w) with kill counts (T,).

    Raises DataError when nobody falls in them.
    """
    rows = np.array(
        [(i, t) for i, (_, kills) in enumerate(stretches) for t in range(-LOOKS[0], len(kills) - LOOKS[-1])]
    )
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
            x, y = _batch(stretches, rows, fell, rng)
            loss = F.binary_cross_entropy_with_logits(probe(x), y)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return probe.eval()


def check(probe: KillProbe, stretches: Sequence[tuple[Tensor, NDArray[np.int32]]]) -> dict[str, Any]:
    """What the probe makes of held-out play, and of pictures in which nobody falls, in kills a minute.

    `correlation`: of its counts with the true ones, stretch by stretch; None where one of them never
    changes. `floor`: the highest of the `controls`.
    """
    minutes = sum(covered(len(small)) for small, _ in stretches) / MINUTE
    own = [probe.count(small) for small, _ in stretches]
    true = [int(np.diff(kills).clip(0).sum()) for _, kills in stretches]
    rng = np.random.default_rng(0)
    made = {name: sum(probe.count(make(small, rng)) for small, _ in stretches) for name, make in CONTROLS}
    controls = {name: round(count / max(minutes, 1e-9), 3) for name, count in made.items()}
    steady = len(own) < 2 or np.std(own) == 0 or np.std(true) == 0
    return {
        "real": round(sum(own) / max(minutes, 1e-9), 3),
        "told": round(sum(true) / max(sum(len(k) - 1 for _, k in stretches) / MINUTE, 1e-9), 3),
        "correlation": None if steady else round(float(np.corrcoef(own, true)[0, 1]), 3),
        "controls": controls,
        "floor": max(controls.values()),
    }


def _batch(
    stretches: Sequence[tuple[Tensor, NDArray[np.int32]]],
    rows: NDArray[np.int64],
    fell: NDArray[np.bool_],
    rng: np.random.Generator,
) -> tuple[Tensor, Tensor]:
    """Half real spans as they come, half spans made from such in which a monster fell, or from any."""
    real, spoilt = rng.integers(len(rows), size=BATCH // 2), rng.integers(len(rows), size=BATCH // 2)
    kills = np.flatnonzero(fell)
    spoilt[::2] = kills[rng.integers(len(kills), size=len(spoilt[::2]))]
    shown = [_shown(stretches[i][0], t) for i, t in rows[real]]
    for n, (i, t) in enumerate(rows[spoilt]):
        shown.append(SPOILT[n // 2 % len(SPOILT)](stretches[i][0], int(t), rng))
    x = torch.stack([_floats(pictures) for pictures in shown])
    x = torch.where(torch.rand(len(x), 1, 1, 1) < 0.5, x, x.flip(-1))
    y = np.concatenate([fell[real], np.zeros(len(spoilt), bool)])
    return x, torch.from_numpy(y).float()


def _shown(small: Tensor, start: int) -> Tensor:
    """The pictures (looks, 3, h, w) of a span."""
    return small[[start + look for look in LOOKS]]


def _floats(shown: Tensor) -> Tensor:
    return shown.flatten(0, 1).float() / 127.5 - 1


def _looks(small: Tensor, start: int) -> Tensor:
    return _floats(_shown(small, start))


def _frozen_span(small: Tensor, start: int, rng: np.random.Generator) -> Tensor:
    return small[[start + int(rng.choice(LOOKS))] * len(LOOKS)]


def _backwards_span(small: Tensor, start: int, rng: np.random.Generator) -> Tensor:
    return _shown(small, start).flip(0)


def _shuffled_span(small: Tensor, start: int, rng: np.random.Generator) -> Tensor:
    """Pictures of any moments of the stretch, one of them the span's."""
    picks = rng.integers(len(small), size=len(LOOKS))
    picks[int(rng.integers(len(picks)))] = start
    return small[torch.from_numpy(picks)]


def _noisy_span(small: Tensor, start: int, rng: np.random.Generator) -> Tensor:
    """The picture of one moment under grain that is new in every picture, from faint to all there is."""
    shown, level = _frozen_span(small, start, rng).float(), float(rng.uniform(0.05, 1.0))
    noise = torch.from_numpy(rng.integers(0, 256, shown.shape).astype(np.float32))
    return (shown * (1 - level) + noise * level).to(torch.uint8)


def _smeared_span(small: Tensor, start: int, rng: np.random.Generator) -> Tensor:
    return _smeared(_shown(small, start), rng)


SPOILT = (_backwards_span, _shuffled_span, _backwards_span, _frozen_span, _noisy_span, _smeared_span)


def _frozen(small: Tensor, rng: np.random.Generator) -> Tensor:
    return small[:1].expand_as(small)


def _backwards(small: Tensor, rng: np.random.Generator) -> Tensor:
    return small.flip(0)


def _shuffled(small: Tensor, rng: np.random.Generator) -> Tensor:
    return small[torch.from_numpy(rng.permutation(len(small)))]


def _noise(small: Tensor, rng: np.random.Generator) -> Tensor:
    return torch.from_numpy(rng.integers(0, 256, small.shape, dtype=np.uint8))


def _smeared(small: Tensor, rng: np.random.Generator) -> Tensor:
    """Blurred until no monster can be told."""
    pooled = F.avg_pool2d(small.float(), 11, stride=1, padding=5, count_include_pad=False)
    return F.avg_pool2d(pooled, 11, stride=1, padding=5, count_include_pad=False).round().to(torch.uint8)


CONTROLS = (
    ("backwards", _backwards),
    ("shuffled", _shuffled),
    ("frozen", _frozen),
    ("noise", _noise),
    ("blurred", _smeared),
)
