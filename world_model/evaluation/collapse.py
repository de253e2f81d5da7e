"""Does a dream that nobody steers still show a world at its end? A stated rule, the same for real frames.

A rollout's last 75 ticks, a turn on the spot where the game can turn, are its end. The end counts as

- flat: mean Laplacian energy under 5 % of the real mean, or mean standard deviation of the luma under 3;
- noise: mean Laplacian energy over 5 times the real mean;
- frozen: median change between frames, over the ticks whose action turns, under 15 % of the real mean;
- one texture: 9 in 10 of its frames have a block spread (`metrics.block_spread`: mean colour distance of
  8 x 5 blocks from their mean) under 15 % of the real mean.

One frame is never enough: a real player who stands in a corner sees one wall too. The real means come
from the held-out episodes; how often the rule blames real frames is reported beside every result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from world_model.data.sources import Source
from world_model.evaluation import metrics
from world_model.evaluation.protocol import Dreamer, Ints, batched, dream
from world_model.evaluation.wander import LOOK_AROUND, kind, turning, wander
from world_model.evaluation.windows import HeldOut, windows
from world_model.types import DataError

FLAT_ENERGY = 0.05
FLAT_LUMA = 3.0
NOISE_ENERGY = 5.0
FROZEN_CHANGE = 0.15
ONE_TEXTURE_SPREAD = 0.15
KINDS = ("flat", "noise", "frozen", "one_texture")

REAL_STRIDE = 10
SOURCE_SEED = 1_600_000_000

Row = tuple[float, float, float, float, bool]
"""Laplacian energy, spread of the luma, block spread, change, and whether the change counts."""


@dataclass(frozen=True)
class RealMeans:
    """Means over held-out frames that the rule's thresholds are shares of."""

    energy: float
    turn_change: float
    spread: float


def real_means(data: HeldOut) -> RealMeans:
    """Every tenth tick of the held-out episodes; `turn_change` over the ticks whose action turns."""
    turns = turning(data.actions)
    energy, spread, change = [], [], []
    for episode in data.episodes:
        for t in range(0, len(episode), REAL_STRIDE):
            image = np.asarray(episode.frames[t])
            energy.append(metrics.laplacian_energy(image))
            spread.append(metrics.block_spread(image))
            if not turns or int(episode.actions[t]) in turns:
                change.append(metrics.change(image, np.asarray(episode.frames[t + 1])))
    if not change:
        raise DataError("the held-out episodes never turn; collect longer ones")
    return RealMeans(*(float(np.mean(v)) for v in (energy, change, spread)))


class EndMeter:
    """Collects the measures of one rollout's end, frame by frame, and gives the verdict."""

    def __init__(self, means: RealMeans, turns: Sequence[int]) -> None:
        self._means, self._turns = means, turns
        self._rows: list[Row] = []
        self._last: NDArray[np.float32] | None = None

    def add(self, image: NDArray[np.uint8], action: int) -> None:
        """Takes the frame uint8 (H, W, 3) that `action` led to."""
        luma = metrics.grey(image)
        change = 0.0 if self._last is None else float(np.abs(luma - self._last).mean())
        counts = self._last is not None and (not self._turns or action in self._turns)
        spread = metrics.block_spread(image)
        self._rows.append((metrics.luma_energy(luma), float(luma.std()), spread, change, counts))
        self._last = luma

    def verdict(self, first: int = 0, count: int | None = None) -> tuple[str, ...]:
        """The kinds of collapse that hold, none for a living end. Frozen needs 10 turning ticks.

        Of all frames, or of `count` frames from the first; then its change from the one before is left out.
        """
        rows = np.array(self._rows[first : None if count is None else first + count], np.float64)
        energy, luma, spread, change, counts = rows.T
        turned = change[1:][counts[1:] > 0]
        real = self._means
        holds = {
            "flat": energy.mean() < FLAT_ENERGY * real.energy or luma.mean() < FLAT_LUMA,
            "noise": energy.mean() > NOISE_ENERGY * real.energy,
            "frozen": len(turned) >= 10 and np.median(turned) < FROZEN_CHANGE * real.turn_change,
            "one_texture": np.percentile(spread, 90) < ONE_TEXTURE_SPREAD * real.spread,
        }
        return tuple(name for name in KINDS if holds[name])


@dataclass(frozen=True)
class CollapseResult:
    """`summary` is ready for JSON; `ends` are the last frames uint8 (N, H, W, 3)."""

    summary: dict[str, Any]
    ends: NDArray[np.uint8]


def collapse(
    dreamer: Dreamer,
    data: HeldOut,
    count: int = 50,
    ticks: int = 1000,
    seed: int = 0,
    batch: int = 16,
    means: RealMeans | None = None,
) -> CollapseResult:
    """Dreams `count` rollouts of `ticks` wandering ticks and judges each end by the module's rule.

    Starts are spread evenly over the held-out episodes; actions are `wander.wander`, one seed each.
    """
    means = means or real_means(data)
    starts = windows(data, 1, count, moving=False, seed=seed)
    plans = np.stack([wander(data.actions, ticks, seed * 100_003 + i) for i in range(len(starts))])
    verdicts: list[tuple[str, ...]] = []
    ends: list[NDArray[np.uint8]] = []
    for group in batched(starts, batch):
        first = len(verdicts)
        found, last = _judge(dreamer, group, plans[first : first + len(group)], means, data)
        verdicts += found
        ends += list(last)
    clips = [[c.episode, c.start] for c in starts]
    return CollapseResult({"clips": clips} | _summary(verdicts, ticks, means), np.stack(ends))


def false_alarms(data: HeldOut, means: RealMeans, stride: int = 25) -> dict[str, Any]:
    """The rule on recorded play: how many 75-tick stretches of real frames would be blamed.

    `look_around` counts only those in which one turn on the spot is held for at least 60 of the 75
    ticks, as in a rollout's end.
    """
    turns = turning(data.actions)
    everything: list[tuple[str, ...]] = []
    turned: list[tuple[str, ...]] = []
    for episode in data.episodes:
        meter = EndMeter(means, turns)
        for t, action in enumerate(episode.actions):
            meter.add(np.asarray(episode.frames[t + 1]), int(action))
        for start in range(0, len(episode) - LOOK_AROUND + 1, stride):
            verdict = meter.verdict(start, LOOK_AROUND)
            everything.append(verdict)
            if _looks_around(episode.actions[start : start + LOOK_AROUND], data.actions):
                turned.append(verdict)
    return {"all": _rate(everything), "look_around": _rate(turned)}


def real_rollouts(
    source: Source, means: RealMeans, count: int = 50, ticks: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """The rule on the real game under the same wandering actions, from places drawn by seed.

    A game that ends, as by the player's death, shows no more and is left out; `ended` counts those.
    """
    names = [action.name for action in source.actions]
    verdicts = []
    for i in range(count):
        source.reset(SOURCE_SEED + i)
        meter = EndMeter(means, turning(names))
        for t, action in enumerate(wander(names, ticks, seed * 100_003 + i)):
            seen = source.step(int(action))
            if seen.terminated or seen.truncated:
                break
            if t >= ticks - LOOK_AROUND:
                meter.add(seen.image, int(action))
        else:
            verdicts.append(meter.verdict())
    return _rate(verdicts) | {"ended": count - len(verdicts)}


def _judge(
    dreamer: Dreamer, group: list[Any], plan: Ints, means: RealMeans, data: HeldOut
) -> tuple[list[tuple[str, ...]], NDArray[np.uint8]]:
    meters = [EndMeter(means, turning(data.actions)) for _ in group]
    ticks = plan.shape[1]
    end = range(ticks - LOOK_AROUND, ticks + 1)
    images = np.empty(0, np.uint8)
    for k, images in enumerate(dream(dreamer, group, plan, end)):
        if k > max(0, ticks - LOOK_AROUND):
            for b, meter in enumerate(meters):
                meter.add(images[b], int(plan[b, k - 1]))
    return [m.verdict() for m in meters], images


def _looks_around(actions: NDArray[Any], names: Sequence[str]) -> bool:
    spots = [i for i, name in enumerate(names) if kind(name) == "turn"]
    return any(int((np.asarray(actions) == i).sum()) >= 60 for i in spots)


def _rate(verdicts: list[tuple[str, ...]]) -> dict[str, Any]:
    blamed = sum(bool(v) for v in verdicts)
    return {"count": len(verdicts), "blamed": blamed, "share": round(blamed / max(1, len(verdicts)), 4)}


def _summary(verdicts: list[tuple[str, ...]], ticks: int, means: RealMeans) -> dict[str, Any]:
    return {
        "rollouts": len(verdicts),
        "ticks": ticks,
        "collapsed": sum(bool(v) for v in verdicts),
        "kinds": {name: sum(name in v for v in verdicts) for name in KINDS},
        "verdicts": [list(v) for v in verdicts],
        "real_means": {k: round(v, 4) for k, v in asdict(means).items()},
    }
