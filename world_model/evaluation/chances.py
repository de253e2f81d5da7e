"""How far dreams of other seeds part from one another, and whether each of them is like the game."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from world_model.evaluation import events
from world_model.evaluation.kills import MINUTE
from world_model.evaluation.metrics import laplacian_energy, psnr
from world_model.evaluation.protocol import Clip, Dreamer, batched, dream, reals
from world_model.evaluation.stats import mean_interval
from world_model.types import DataError

BRANCH_TICKS = (8, 32, 64)
SEEDS = 4


class _Run:
    """Dreams of one seed: pictures (B, H, W, 3) by tick, and sound (T, B, samples, channels) or None."""

    def __init__(self, dreamer: Dreamer, clips: list[Clip]) -> None:
        last = max(BRANCH_TICKS)
        actions = np.stack([np.asarray(c.future[:last], np.int64) for c in clips])
        self.at: dict[int, NDArray[np.uint8]] = {}
        heard = []
        for k, images in enumerate(dream(dreamer, clips, actions, painted=BRANCH_TICKS)):
            sound = getattr(dreamer, "heard", None) if k else None
            heard += [sound] if sound is not None else []
            if k in BRANCH_TICKS:
                self.at[k] = images
        self.sound = np.stack(heard) if heard else None

    def like(self, other: _Run) -> bool:
        """Whether they are the same to the byte."""
        same = all(np.array_equal(self.at[k], other.at[k]) for k in self.at)
        if self.sound is not None and other.sound is not None:
            return same and np.array_equal(self.sound, other.sound)
        return same


def diversity(dreamer: Dreamer, clips: Sequence[Clip], batch: int = 16, seeds: int = SEEDS) -> dict[str, Any]:
    """Dreams of `seeds` seeds from one start under the same actions.

    `psnr`: mean of their pairs by tick (lower is more different); `starts`: the same of real pictures that
    went on from different starts, which have nothing in common. Noise parts too: so `own` has for each seed
    its sharpness against the real pictures of these ticks and the bangs it dreams a minute, and `real` those
    of the game. `same_seed_repeats`: whether a seed repeats itself to the byte. Raises DataError for a
    dreamer that has no seeds.
    """
    again: Callable[[int], Dreamer] | None = getattr(dreamer, "reseeded", None)
    if again is None:
        raise DataError("only a world has other chances under another seed")
    names: list[str] = []
    pairs: dict[int, list[float]] = {k: [] for k in BRANCH_TICKS}
    own, repeats = [_Own() for _ in range(seeds)], True
    for group in batched(clips, batch):
        runs = [_Run(again(seed), group) for seed in (*range(1, seeds + 1), 1)]
        repeats = repeats and runs[0].like(runs[-1])
        for k in pairs:
            for b in range(len(group)):
                shown = [run.at[k][b] for run in runs[:-1]]
                pairs[k].append(float(np.mean([psnr(x, y) for i, x in enumerate(shown) for y in shown[:i]])))
        for each, run in zip(own, runs, strict=False):
            each.add(run, group)
        names += [c.episode for c in group]
    return {
        "seeds": seeds,
        "same_seed_repeats": repeats,
        "psnr": {str(k): mean_interval(v, names) for k, v in pairs.items()},
        "starts": {str(k): v for k in BRANCH_TICKS if (v := _starts(clips, k)) is not None},
        "own": [each.figures() for each in own],
        "real": {"bangs": _real_bangs(clips)},
    }


class _Own:
    """What the dreams of one seed are like."""

    def __init__(self) -> None:
        self._edges = self._real_edges = 0.0
        self._bangs = self._ticks = 0

    def add(self, run: _Run, clips: list[Clip]) -> None:
        for k, images in run.at.items():
            self._edges += sum(map(laplacian_energy, images))
            self._real_edges += sum(map(laplacian_energy, reals(clips, k)))
        if run.sound is not None:
            self._bangs += sum(int(events.sound_onsets(line).sum()) for line in run.sound.swapaxes(0, 1))
            self._ticks += run.sound.shape[0] * run.sound.shape[1]

    def figures(self) -> dict[str, float | None]:
        bangs = round(self._bangs / self._ticks * MINUTE, 2) if self._ticks else None
        return {"sharpness": round(self._edges / max(self._real_edges, 1e-9), 4), "bangs": bangs}


def _starts(clips: Sequence[Clip], k: int) -> float | None:
    """Mean PSNR of real pictures of neighbouring clips, tick by tick alike."""
    shown = [clip.real(k) for clip in clips]
    pairs = [psnr(a, b) for a, b in pairwise(shown)]
    return round(float(np.mean(pairs)), 4) if pairs else None


def _real_bangs(clips: Sequence[Clip]) -> float | None:
    """Bangs a minute in the same stretches of the game."""
    first, last = clips[0].context - 1, max(BRANCH_TICKS)
    lines = [np.asarray(c.sound[first : first + last]) for c in clips if c.sound is not None]
    ticks = sum(map(len, lines))
    return (
        round(sum(int(events.sound_onsets(line).sum()) for line in lines) / ticks * MINUTE, 2)
        if ticks
        else None
    )
