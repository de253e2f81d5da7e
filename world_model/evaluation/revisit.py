"""Does a place come back? Full turns and walks there and back, with the real game as the judge."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from world_model.data.sources import Observation, Source
from world_model.evaluation import metrics
from world_model.evaluation.protocol import Clip, Dreamer, Images, Ints, batched, dream
from world_model.evaluation.stats import mean_interval
from world_model.evaluation.wander import mirrored, named
from world_model.evaluation.windows import CONTEXT
from world_model.types import DataError

FIRST_SEED = 1_700_000_000
"""Beyond the seeds of every split."""

LONGEST_TURN = 400


def turn_clips(source: Source, count: int, context: int = CONTEXT, seed: int = 0) -> list[Clip]:
    """Real full turns: idle through the context, then `left` until the heading has come round.

    The clip ends at the tick whose heading is nearest to 360 degrees. Raises DataError for a source
    without pose or without such a turn.
    """
    names = [a.name for a in source.actions]
    left, idle = named(names, "left"), named(names, "idle") or 0
    if left is None:
        raise DataError(f"{source.name} has no action named left")
    return [_turn_clip(source, FIRST_SEED + seed + i, context, left, idle) for i in range(count)]


def turn(dreamer: Dreamer, clips: Sequence[Clip], batch: int = 16) -> dict[str, Any]:
    """PSNR of the dream after a full turn against the real frame of that tick (`psnr`).

    For comparison: against the last real frame of another, random clip (`random`), and half-way round
    (`half`, a view that no keyframe of the start shows). `seed_frame` is the real last context frame
    against the real last frame: what copy-seed scores, and how well the turn closes in the real game.
    `closure` is the dream's last frame against the dream's own first: it needs no source.
    """
    if len(clips) < 2:
        raise DataError("a turn is compared with a random frame of another turn: at least two are needed")
    offsets = np.random.default_rng(0).integers(1, len(clips), len(clips))
    rows: list[dict[str, float]] = []
    for group in batched(clips, batch):
        frames = [images.copy() for images in dream(dreamer, group)]
        for b, clip in enumerate(group):
            other = clips[(len(rows) + int(offsets[len(rows)])) % len(clips)]
            rows.append(_turn_row(clip, other, [f[b] for f in frames]))
    names = [c.episode for c in clips]
    result = {key: mean_interval([r[key] for r in rows], names) for key in rows[0]}
    return {"turns": len(clips), "ticks": clips[0].ticks, **result}


def there_and_back(
    source: Source, count: int, ticks: int, context: int = CONTEXT, seed: int = 0
) -> list[Clip]:
    """Real walks of `ticks` ticks out, then the mirrored actions back; the context stands idle.

    The real frames follow the game, which need not return exactly (walls, inertia).
    """
    names = [a.name for a in source.actions]
    clips = []
    for i in range(count):
        out = _walk(names, ticks, seed + i)
        plan = np.concatenate([np.full(context - 1, named(names, "idle") or 0), out, mirrored(names, out)])
        clips.append(_record(source, FIRST_SEED + seed + i, plan, context))
    return clips


def retrace(dreamer: Dreamer, clips: Sequence[Clip], batch: int = 8) -> dict[str, Any]:
    """PSNR of dream and of copy-seed against the real frames on the way back, by ticks since the turn."""
    half = clips[0].ticks // 2
    marks = [k for k in (1, 4, 8, 16, 32, 64, 128, 256, 400) if k <= half]
    rows: dict[int, list[tuple[float, float]]] = {k: [] for k in marks}
    for group in batched(clips, batch):
        for k, images in enumerate(dream(dreamer, group)):
            if k - half in rows:
                for image, clip in zip(images, group, strict=True):
                    real = clip.real(k)
                    rows[k - half].append((metrics.psnr(image, real), metrics.psnr(clip.real(0), real)))
    names = [c.episode for c in clips]
    return {
        str(k): {
            "psnr": mean_interval([a for a, _ in pairs], names),
            "copy_seed": mean_interval([b for _, b in pairs], names),
        }
        for k, pairs in rows.items()
    }


def _turn_row(clip: Clip, other: Clip, frames: list[Images]) -> dict[str, float]:
    last, half = clip.ticks, clip.ticks // 2
    return {
        "psnr": metrics.psnr(frames[last], clip.real(last)),
        "random": metrics.psnr(frames[last], other.real(other.ticks)),
        "half": metrics.psnr(frames[half], clip.real(half)),
        "seed_frame": metrics.psnr(clip.real(0), clip.real(last)),
        "closure": metrics.psnr(frames[last], frames[0]),
    }


def _turn_clip(source: Source, seed: int, context: int, left: int, idle: int) -> Clip:
    observations, actions = [source.reset(seed)], []
    for _ in range(context - 1):
        observations.append(source.step(idle))
        actions.append(idle)
    turned = [0.0]
    while turned[-1] < math.tau:
        if len(turned) > LONGEST_TURN:
            raise DataError(f"{source.name} does not come round in {LONGEST_TURN} ticks of left")
        before = _heading(source, observations[-1])
        observations.append(source.step(left))
        actions.append(left)
        turned.append(turned[-1] + abs(math.remainder(_heading(source, observations[-1]) - before, math.tau)))
    if abs(turned[-2] - math.tau) < abs(turned[-1] - math.tau):
        observations, actions = observations[:-1], actions[:-1]
    return _clip(observations, np.array(actions), context, seed)


def _record(source: Source, seed: int, plan: Ints, context: int) -> Clip:
    observations = [source.reset(seed)]
    observations += [source.step(int(action)) for action in plan]
    return _clip(observations, plan, context, seed)


def _clip(observations: list[Observation], actions: Ints, context: int, seed: int) -> Clip:
    poses = [o.pose for o in observations]
    return Clip(
        frames=np.stack([o.image for o in observations]),
        actions=actions,
        pose=None if poses[0] is None else np.stack([p for p in poses if p is not None]),
        phase=observations[0].phase,
        context=context,
        episode=f"seed {seed}",
        start=0,
    )


def _heading(source: Source, obs: Observation) -> float:
    if obs.pose is None:
        raise DataError(f"{source.name} has no pose, so a full turn cannot be measured")
    return float(obs.pose[2])


def _walk(names: Sequence[str], ticks: int, seed: int) -> Ints:
    """Forward with short turns: actions that `mirrored` can undo."""
    rng = np.random.default_rng(seed)
    plan: list[int] = []
    while len(plan) < ticks:
        name = ("forward", "left", "right")[rng.choice(3, p=(0.6, 0.2, 0.2))]
        hold = rng.integers(8, 30) if name == "forward" else rng.integers(3, 12)
        plan += [named(names, name) or 0] * int(hold)
    return np.array(plan[:ticks], np.int64)
