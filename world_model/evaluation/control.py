"""Do actions act? Left against right, true against random actions, and how soon an input shows."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from world_model.evaluation import metrics
from world_model.evaluation.protocol import Clip, Dreamer, Images, batched, dream, reals
from world_model.evaluation.shift import horizontal_shift
from world_model.evaluation.stats import mean_interval
from world_model.evaluation.wander import named
from world_model.evaluation.windows import HeldOut
from world_model.types import DataError

SWAP_TICKS = 4
SEEN_LEVELS = 0.05
"""Mean absolute luma difference, of 255, from which two dreams are told apart."""


def control(dreamer: Dreamer, clips: Sequence[Clip], names: Sequence[str], batch: int = 16) -> dict[str, Any]:
    """Swap test: from each start, four ticks of left and, from the same state, four ticks of right.

    The sideways shift (`shift.horizontal_shift`) is summed over the four ticks of each. `opposite` is the
    share of starts whose two sums have opposite signs; `correct` asks in addition for the real
    direction (turning left moves the picture right). `first_tick` counts after how many ticks the two
    dreams differ at all: 1 is the tick of the input itself. Raises DataError for a game without turns.
    """
    left, right = _sides(names)
    shifts, first, groups = [], [], []
    for group in batched(clips, batch):
        sides = [_roll(dreamer, group, action) for action in (left, right)]
        shifts += [[shift_over([f[b] for f in side]) for side in sides] for b in range(len(group))]
        first += [
            _first_difference([f[b] for f in sides[0]], [f[b] for f in sides[1]]) for b in range(len(group))
        ]
        groups += [c.episode for c in group]
    sums = np.array(shifts)
    opposite = sums[:, 0] * sums[:, 1] < 0
    return {
        "starts": len(sums),
        "opposite": mean_interval(opposite, groups),
        "correct": mean_interval(opposite & (sums[:, 0] > 0), groups),
        "median_shift": {"left": _median(sums[:, 0]), "right": _median(sums[:, 1])},
        "first_tick": {str(k): first.count(k) for k in sorted(set(first))},
        "same_tick": mean_interval([f == 1 for f in first], groups),
    }


def real_turns(data: HeldOut, per_side: int = 100) -> dict[str, Any]:
    """The same estimator on real frames: stretches of four recorded ticks in which left or right is held.

    `correct` is the share whose summed shift has the right sign; `opposite` pairs left and right
    stretches in the order they come. This is what the estimator can reach, not a property of a dream.
    """
    found = {
        side: _held(data, action, per_side)
        for side, action in zip((1, -1), _sides(data.actions), strict=True)
    }
    if not all(found.values()):
        raise DataError("the held-out episodes hold no turns of four ticks; collect longer ones")
    values = [(side * s > 0, name) for side, rows in found.items() for s, name in rows]
    pairs = [a * b < 0 for (a, _), (b, _) in zip(*found.values(), strict=False)]
    return {
        "stretches": len(values),
        "correct": mean_interval([v for v, _ in values], [n for _, n in values]),
        "opposite": round(float(np.mean(pairs)), 4),
        "median_shift": {k: _median([s for s, _ in found[v]]) for k, v in (("left", 1), ("right", -1))},
    }


def delta_psnr(
    dreamer: Dreamer, clips: Sequence[Clip], actions: int, tick: int = 4, seed: int = 0, batch: int = 16
) -> dict[str, Any]:
    """PSNR at `tick` under the recorded actions minus PSNR under uniformly random ones (Genie, eq. 1)."""
    rng = np.random.default_rng(seed)
    gains: list[float] = []
    for group in batched(clips, batch):
        true = np.stack([np.asarray(c.future[:tick], np.int64) for c in group])
        quality = []
        for plan in (true, rng.integers(actions, size=true.shape)):
            *_, last = dream(dreamer, group, plan)
            quality.append(metrics.psnr_each(last, reals(group, tick)))
        gains += list(quality[0] - quality[1])
    return {"tick": tick, "delta": mean_interval(gains, [c.episode for c in clips])}


def shift_over(frames: Sequence[Any]) -> float:
    """Sum of the shifts between neighbouring frames uint8 (H, W, 3), in pixels."""
    return sum(horizontal_shift(a, b) for a, b in itertools.pairwise(frames))


def _sides(names: Sequence[str]) -> tuple[int, int]:
    left, right = named(names, "left"), named(names, "right")
    if left is None or right is None:
        raise DataError(f"this game has no actions named left and right, only {', '.join(names)}")
    return left, right


def _roll(dreamer: Dreamer, group: list[Clip], action: int) -> list[Images]:
    plan = np.full((len(group), SWAP_TICKS), action, np.int64)
    return [images.copy() for images in dream(dreamer, group, plan)]


def _first_difference(left: list[Any], right: list[Any]) -> int:
    """The first tick at which two dreams differ, or 0 for never."""
    for k in range(1, len(left)):
        if metrics.change(left[k], right[k]) > SEEN_LEVELS:
            return k
    return 0


def _held(data: HeldOut, action: int, count: int) -> list[tuple[float, str]]:
    """Summed shifts of stretches in which `action` alone is held, evenly spread over all there are."""
    places = []
    for index, episode in enumerate(data.episodes):
        same = (np.asarray(episode.actions) == action).astype(int)
        runs = np.convolve(same, np.ones(SWAP_TICKS, int), "valid") == SWAP_TICKS
        places += [(index, int(t)) for t in np.flatnonzero(runs)]
    picks = (
        [places[int(i)] for i in np.linspace(0, len(places) - 1, min(count, len(places)))] if places else []
    )
    rows = []
    for index, t in picks:
        frames = [np.asarray(data.episodes[index].frames[t + k]) for k in range(SWAP_TICKS + 1)]
        rows.append((shift_over(frames), data.names[index]))
    return rows


def _median(values: Any) -> float:
    return round(float(np.median(values)), 2)
