"""How close a dream stays to the real game: one tick ahead, and fed with its own predictions.

All intervals are 95 % percentile bootstraps over episodes (`stats.mean_interval`). One tick is 40 ms.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from world_model.evaluation import metrics
from world_model.evaluation.protocol import Clip, Dreamer, batched, check_frames, dream, reals
from world_model.evaluation.stats import mean_interval, ratio_interval
from world_model.evaluation.windows import clip_moved

TICKS = (1, 4, 8, 16, 32, 64, 128, 256, 500, 1000)
AROUND = 2
"""`gain_5` averages the gain over this many ticks on either side."""

LOST_DB = 10.0

SAME_DB = 50.0
"""PSNR of the real picture against the seed from which it counts as the same one: less than a level apart.
There copy-seed is right by standing still (100 dB to the byte), and a few such clips would rule a mean: they
do not count for gains. The real pictures alone decide, never the dream."""

Array = NDArray[np.float64]
Watch = Callable[[int, NDArray[np.uint8], NDArray[np.uint8]], None]
"""Is shown tick, dreamed and real pictures (B, H, W, 3) of a batch, batches in the order of the clips."""


def one_tick(dreamer: Dreamer, clips: Sequence[Clip], batch: int = 8) -> dict[str, Any]:
    """Teacher-forced one tick ahead: every imagined tick of a clip is predicted from real frames only.

    gain = PSNR(prediction of o[t+1], o[t+1]) - PSNR(o[t], o[t+1]): dB above persistence. The headline
    counts ticks that moved (see `windows.windows`), since persistence is perfect when nothing moves;
    `all` counts every tick, `per_clip` is its mean PSNR clip by clip. `ms_ssim` and `ssim` are means over
    every eighth tick that counts. Where the dreamer can only step, the first tick of each
    clip is all that is measured. `ceiling` is the PSNR of encoding and decoding the real frame, where the
    dreamer offers it.
    """
    rows: list[_OneTick] = []
    for group in batched(clips, batch):
        rows += _one_tick_batch(dreamer, group)
    moving = [r for r in rows if r.moved] or rows
    names = [r.episode for r in moving]
    sample = [r for r in moving if r.ssim is not None]
    result: dict[str, Any] = {
        "clips": [[c.episode, c.start] for c in clips],
        "context": clips[0].context,
        "ticks": len(moving),
        "psnr": mean_interval([r.dream for r in moving], names),
        "persistence": mean_interval([r.persistence for r in moving], names),
        "gain": mean_interval([r.dream - r.persistence for r in moving], names),
        "all": {
            "ticks": len(rows),
            "psnr": mean_interval([r.dream for r in rows], [r.episode for r in rows]),
        },
    }
    if sample:
        episodes = [r.episode for r in sample]
        result["ssim"] = mean_interval([r.ssim[0] for r in sample if r.ssim], episodes)
        result["ms_ssim"] = mean_interval([r.ssim[1] for r in sample if r.ssim], episodes)
    result["per_clip"] = _mean_by_clip(rows, clips)
    if hasattr(dreamer, "reconstruct"):
        result["ceiling"] = _ceiling(dreamer, clips)
    return result


def rollout(
    dreamer: Dreamer,
    clips: Sequence[Clip],
    ticks: Sequence[int] = TICKS,
    batch: int = 16,
    watch: Watch | None = None,
    watched: Container[int] = (),
) -> dict[str, Any]:
    """Own predictions fed back under the recorded actions, against copy-seed (last context frame held).

    At each tick k of `ticks` that the clips reach: PSNR of the dream, and, over the clips whose real picture
    has changed since the seed (see `SAME_DB`; None where none has), PSNR of copy-seed, gain = mean of
    PSNR_dream(k) - PSNR_copy(k), `gain_5` the same averaged over ticks k - 2 .. k + 2, the median gain.
    Of all clips: SSIM, MS-SSIM, the share under 10 dB, `laplacian_ratio` = mean over clips of the dream's
    Laplacian energy / mean of the real frames', `change_ratio` likewise for the mean absolute change from
    the frame before, and the colour-histogram distance to the real frame.
    `per_clip` keeps every clip's PSNR, gain and sharpness (its own ratio of Laplacian energies), so that
    two dreamers can be compared in pairs. `watch` is shown the pictures of the ticks in `watched`.
    """
    names = [c.episode for c in clips]
    at = [k for k in ticks if k <= clips[0].ticks]
    parts = [rollout_values(dreamer, group, at, watch, watched) for group in batched(clips, batch)]
    values = {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
    sharp = values["energy"] / np.maximum(values["real_energy"], 1e-9)
    return {
        "clips": [[c.episode, c.start] for c in clips],
        "context": clips[0].context,
        "ticks": {str(k): _summary(values, i, k, names) for i, k in enumerate(at)},
        "per_clip": {
            str(k): {
                "psnr": np.round(values["dream"][:, k], 2).tolist(),
                "gain": np.round(values["dream"][:, k] - values["copy"][:, k], 2).tolist(),
                "sharpness": np.round(sharp[:, i], 3).tolist(),
            }
            for i, k in enumerate(at)
        },
    }


def rollout_values(
    dreamer: Dreamer,
    clips: Sequence[Clip],
    ticks: Sequence[int],
    watch: Watch | None = None,
    watched: Container[int] = (),
) -> dict[str, Array]:
    """Raw measures of one batch: `dream` and `copy` are PSNR (B, all ticks + 1), the rest (B, ticks).

    PSNR is measured within `AROUND` ticks of a tick of `ticks`, and 0 elsewhere.
    """
    last_tick = clips[0].ticks
    near = {j for k in ticks for j in range(max(0, k - AROUND), min(last_tick, k + AROUND) + 1)}
    painted = near | {k for k in range(last_tick + 1) if k in watched}
    seed = reals(clips, 0)
    curves = {name: np.zeros((len(clips), last_tick + 1)) for name in ("dream", "copy")}
    points: dict[str, list[Any]] = {}
    before: tuple[NDArray[np.uint8], NDArray[np.uint8]] = (seed, seed)
    for k, images in enumerate(dream(dreamer, clips, painted=painted)):
        if k not in painted:
            continue
        real = reals(clips, k)
        curves["dream"][:, k] = metrics.psnr_each(images, real)
        curves["copy"][:, k] = metrics.psnr_each(seed, real)
        if k in ticks and k > 0:
            for name, value in _measure(images, real, *before).items():
                points.setdefault(name, []).append(value)
        if watch is not None and k in watched:
            watch(k, images, real)
        before = images, real
    return curves | {name: np.stack(rows, 1) for name, rows in points.items()}


def _measure(
    images: NDArray[np.uint8], real: NDArray[np.uint8], last: NDArray[np.uint8], last_real: NDArray[np.uint8]
) -> dict[str, list[float]]:
    pairs = list(zip(images, real, strict=True))
    return {
        "ssim": [metrics.ssim(a, b) for a, b in pairs],
        "ms_ssim": [metrics.ms_ssim(a, b) for a, b in pairs],
        "histogram": [metrics.histogram_distance(a, b) for a, b in pairs],
        "energy": [metrics.laplacian_energy(a) for a in images],
        "real_energy": [metrics.laplacian_energy(a) for a in real],
        "change": [metrics.change(a, b) for a, b in zip(images, last, strict=True)],
        "real_change": [metrics.change(a, b) for a, b in zip(real, last_real, strict=True)],
    }


def _summary(values: dict[str, Array], i: int, tick: int, names: list[str]) -> dict[str, Any]:
    return {
        "psnr": mean_interval(values["dream"][:, tick], names),
        **_gains(values["dream"], values["copy"], tick, names),
        "ssim": mean_interval(values["ssim"][:, i], names),
        "ms_ssim": mean_interval(values["ms_ssim"][:, i], names),
        "histogram": mean_interval(values["histogram"][:, i], names),
        "under_10_db": round(float((values["dream"][:, tick] < LOST_DB).mean()), 4),
        "laplacian_ratio": ratio_interval(values["energy"][:, i], values["real_energy"][:, i], names),
        "change_ratio": ratio_interval(values["change"][:, i], values["real_change"][:, i], names),
    }


def _gains(own: Array, copy: Array, tick: int, names: list[str]) -> dict[str, Any]:
    """What is held against copy-seed, from curves of PSNR (B, all ticks + 1); None where nothing changed."""
    near = slice(max(1, tick - AROUND), tick + AROUND + 1)
    changed = copy < SAME_DB
    gain = own - copy

    def mean(values: Array, counts: Any) -> dict[str, Any] | None:
        kept = [name for name, counted in zip(names, counts, strict=True) if counted]
        return mean_interval(values[counts], kept) if kept else None

    return {
        "copy_seed": mean(copy[:, tick], changed[:, tick]),
        "gain": mean(gain[:, tick], changed[:, tick]),
        "gain_5": mean(gain[:, near].mean(1), changed[:, near].all(1)),
        "gain_median": _median(gain[changed[:, tick], tick]),
    }


def _median(values: Array) -> float | None:
    return round(float(np.median(values)), 4) if len(values) else None


@dataclass(frozen=True)
class _OneTick:
    episode: str
    start: int
    moved: bool
    dream: float
    persistence: float
    ssim: tuple[float, float] | None


def _one_tick_batch(dreamer: Dreamer, clips: list[Clip]) -> list[_OneTick]:
    frames = np.stack([np.asarray(c.frames) for c in clips])
    n = clips[0].context
    if hasattr(dreamer, "context_predictions"):
        act = np.stack([np.asarray(c.actions, np.int64) for c in clips])
        phase = np.array([c.phase for c in clips], np.int64)
        predicted = dreamer.context_predictions(frames, act, phase)
        shape = (len(clips), frames.shape[1] - 1, *frames.shape[2:])
        predicted = check_frames(dreamer, predicted, shape)[:, n - 1 :]
    else:
        images = dream(dreamer, clips)
        next(images)
        predicted = next(images)[:, None]
    rows = []
    for b, clip in enumerate(clips):
        motion = clip_moved(clip)
        for t, guess in enumerate(predicted[b]):
            before, after = frames[b, n - 1 + t], frames[b, n + t]
            both = (metrics.ssim(guess, after), metrics.ms_ssim(guess, after)) if t % 8 == 0 else None
            quality = metrics.psnr(guess, after), metrics.psnr(before, after)
            rows.append(_OneTick(clip.episode, clip.start, bool(motion[t]), *quality, both))
    return rows


def _mean_by_clip(rows: list[_OneTick], clips: Sequence[Clip]) -> list[float]:
    found: dict[tuple[str, int], list[float]] = {}
    for row in rows:
        found.setdefault((row.episode, row.start), []).append(row.dream)
    return [round(float(np.mean(found[c.episode, c.start])), 2) for c in clips]


def _ceiling(dreamer: Any, clips: Sequence[Clip]) -> dict[str, Any]:
    quality = []
    for group in batched(clips, 8):
        obs = np.stack([np.asarray(c.frames[-8:]) for c in group])
        made = check_frames(dreamer, dreamer.reconstruct(obs), obs.shape)
        quality += [float(metrics.psnr_each(a, b).mean()) for a, b in zip(made, obs, strict=True)]
    return mean_interval(quality, [c.episode for c in clips])
