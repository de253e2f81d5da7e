"""Does a place come back? Full turns and walks there and back, judged by the game or by the dream.

Every distance in time is in ticks of 40 ms; PSNR in dB; intervals over episodes (`stats.mean_interval`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from world_model.evaluation import metrics
from world_model.evaluation.protocol import Clip, Dreamer, Images, batched, dream
from world_model.evaluation.stats import mean_interval
from world_model.evaluation.walks import PAUSE, can_mirror, out_and_back, seen_at, turn_ticks, way_out
from world_model.evaluation.windows import HeldOut, windows
from world_model.types import DataError

MARKS = (1, 4, 8, 16, 32, 64, 128, 200, 256, 400)
"""Ticks since the turn of which the way back is told; clip by clip it is measured every `EVERY` ticks too."""

EVERY = 8

CLOSURE_TICKS = 40

BACK_THERE = ("remembered", "own", "real_own")
"""Measures that need the real game to be back where it was on the way out."""

PER_CLIP = ("psnr", "copy_seed", "distance")
"""What is kept of each walk, to compare in pairs and by distance."""

Rows = list[dict[str, float]]


def turn(dreamer: Dreamer, clips: Sequence[Clip], batch: int = 16) -> dict[str, Any]:
    """PSNR of the dream after a full turn against the real frame of that tick (`psnr`).

    For comparison: against the last real frame of another, random clip (`random`), and half-way round
    (`half`, a view that no keyframe of the start shows). `seed_frame` is the real last context frame
    against the real last frame: what copy-seed scores, and how well the turn closes in the real game.
    `closure` is the dream's last frame against the dream's own first.
    """
    if len(clips) < 2:
        raise DataError("a turn is compared with a random frame of another turn: at least two are needed")
    offsets = np.random.default_rng(0).integers(1, len(clips), len(clips))
    rows: Rows = []
    for group in batched(clips, batch):
        frames = _frames(dreamer, group, {0, group[0].ticks // 2, group[0].ticks})
        for b, clip in enumerate(group):
            other = clips[(len(rows) + int(offsets[len(rows)])) % len(clips)]
            rows.append(_turn_row(clip, other, {k: f[b] for k, f in frames.items()}))
    return {"turns": len(clips), "ticks": clips[0].ticks, **_means(rows, [c.episode for c in clips])}


def retrace(dreamer: Dreamer, clips: Sequence[Clip], batch: int = 8) -> dict[str, Any]:
    """There and back, both dreamed: the way out, a pause, then the mirrored actions.

    k ticks on the way back: PSNR of the dream (`psnr`) and of copy-seed against the real frame; of the
    dream against its own picture from when it came by on the way out (`own`, the loop closure of the
    dream with itself), and of the real game with itself (`real_own`). `walks.seen_at` tells when that
    was; `own` and `real_own` are over the walks in which the real game is back there (`same_place`).
    """
    return _way_back(dreamer, clips, way_out(clips[0]) + PAUSE, batch)


def recall(dreamer: Dreamer, clips: Sequence[Clip], batch: int = 4) -> dict[str, Any]:
    """The way out is seen as real frames, the way back is dreamed (`walks.remembering`).

    k ticks on the way back, the view in front was seen `distance` ticks ago (`walks.seen_at`; about
    2 k). PSNR of the dream (`psnr`) and of copy-seed against the real frame; of the dream against the
    remembered real frame (`remembered`) and of the real game against it (`real_own`), over the walks in
    which the real game is back there (`same_place`).
    """
    return _way_back(dreamer, clips, 0, batch)


def loop_closure(
    dreamer: Dreamer, data: HeldOut, count: int, seed: int = 0, batch: int = 16
) -> dict[str, Any]:
    """The dream against its own first picture, from held-out starts; needs no source.

    `turn`: as many ticks of left as make a full turn in the recorded play (`walks.turn_ticks`).
    `walk`: 40 ticks out, a pause, and the mirrored actions back, blind to walls. For each: PSNR at the
    end (`closure`), half-way (`away`: a dream that stands still scores as high there), and against the
    first picture of another start (`other`: what unlike places score). What the game's
    actions do not allow is left out.
    """
    starts = windows(data, 1, count, moving=False, seed=seed + 2)
    plans = {}
    full = turn_ticks(data)
    if full is not None:
        plans["turn"] = np.full((len(starts), full), data.actions.index("left"), np.int64)
    if can_mirror(data.actions):
        phases = int(data.episodes[0].header.get("phases") or 1)
        seeds = [seed * 100_003 + i for i in range(len(starts))]
        walks = [out_and_back(data.actions, CLOSURE_TICKS, s, phases) for s in seeds]
        plans["walk"] = np.stack(walks)
    return {name: _closed(dreamer, starts, plan, batch) for name, plan in plans.items()}


def _closed(dreamer: Dreamer, starts: Sequence[Clip], plan: NDArray[np.int64], batch: int) -> dict[str, Any]:
    end = plan.shape[1]
    kept: list[tuple[Images, Images, Images]] = []
    done = 0
    for group in batched(starts, batch):
        steps = plan[done : done + len(group)]
        frames = _frames(dreamer, group, {0, end // 2, end}, steps)
        kept.append((frames[0], frames[end // 2], frames[end]))
        done += len(group)
    first, away, last = (np.concatenate(part) for part in zip(*kept, strict=True))
    rows = {
        "closure": metrics.psnr_each(last, first),
        "away": metrics.psnr_each(away, first),
        "other": metrics.psnr_each(last, np.roll(first, 1, axis=0)),
    }
    names = [c.episode for c in starts]
    return {"starts": len(starts), "ticks": end} | {k: mean_interval(v, names) for k, v in rows.items()}


def _way_back(dreamer: Dreamer, clips: Sequence[Clip], turned: int, batch: int) -> dict[str, Any]:
    """Measures by mark, as means with intervals; and each clip's PSNR, to compare in pairs.

    `turned`: the tick at which the way back begins. What was seen at ticks before 0 is a real frame.
    """
    back = clips[0].ticks - turned
    marks = sorted({k for k in MARKS if k <= back} | set(range(EVERY, back + 1, EVERY)))
    seen = [{k: seen_at(clip, turned, k) for k in marks} for clip in clips]
    rows: dict[int, Rows] = {k: [] for k in marks}
    done = 0
    for group in batched(clips, batch):
        then = seen[done : done + len(group)]
        painted = {turned + k for k in marks} | {
            tick for row in then for tick, _ in row.values() if tick >= 0
        }
        frames = _frames(dreamer, group, painted)
        for b, clip in enumerate(group):
            own = {k: f[b] for k, f in frames.items()}
            for k in marks:
                rows[k].append(_way_back_row(clip, own, turned + k, *then[b][k]))
        done += len(group)
    names = [c.episode for c in clips]
    return {
        "clips": [[c.episode, c.start] for c in clips],
        "context": clips[0].context,
        "ticks": {str(k): _means(found, names) for k, found in rows.items() if k in MARKS},
        "per_clip": {
            str(k): {name: [round(r[name], 2) for r in found] for name in PER_CLIP}
            for k, found in rows.items()
        },
    }


def _way_back_row(
    clip: Clip, frames: dict[int, NDArray[np.uint8]], now: int, then: int, same: bool
) -> dict[str, float]:
    real, dreamed = clip.real(now), frames[now]
    row = {
        "distance": float(now - then),
        "psnr": metrics.psnr(dreamed, real),
        "copy_seed": metrics.psnr(clip.real(0), real),
        "same_place": float(same),
    }
    if then < 0:
        row["remembered"] = metrics.psnr(dreamed, clip.real(then))
    else:
        row["own"] = metrics.psnr(dreamed, frames[then])
    row["real_own"] = metrics.psnr(real, clip.real(then))
    return row


def _frames(
    dreamer: Dreamer, group: list[Clip], ticks: set[int], plan: NDArray[np.int64] | None = None
) -> dict[int, Images]:
    """The dream's pictures at these ticks."""
    pictures = enumerate(dream(dreamer, group, plan, ticks))
    return {k: images.copy() for k, images in pictures if k in ticks}


def _means(rows: Rows, names: list[str]) -> dict[str, Any]:
    """Means of every measure; what is held against the way out only where the real game is back there."""
    result: dict[str, Any] = {}
    for key in rows[0]:
        kept = [i for i, r in enumerate(rows) if key not in BACK_THERE or r["same_place"]]
        if kept:
            result[key] = mean_interval([rows[i][key] for i in kept], [names[i] for i in kept])
    return result


def _turn_row(clip: Clip, other: Clip, frames: dict[int, NDArray[np.uint8]]) -> dict[str, float]:
    last, half = clip.ticks, clip.ticks // 2
    return {
        "psnr": metrics.psnr(frames[last], clip.real(last)),
        "random": metrics.psnr(frames[last], other.real(other.ticks)),
        "half": metrics.psnr(frames[half], clip.real(half)),
        "seed_frame": metrics.psnr(clip.real(0), clip.real(last)),
        "closure": metrics.psnr(frames[last], frames[0]),
    }
