"""All protocols in one pass: `eval.json`, a Markdown table and strips of real over dream.

Everything is deterministic by seed and free of timings; speed is `main.py bench`'s.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from world_model.data.sources import make_source
from world_model.evaluation.collapse import collapse, false_alarms, real_means, real_rollouts
from world_model.evaluation.control import control, delta_psnr, real_turns
from world_model.evaluation.probe import path_error, train_probe
from world_model.evaluation.protocol import Clip, Dreamer
from world_model.evaluation.realness import real_or_dream
from world_model.evaluation.revisit import retrace, there_and_back, turn, turn_clips
from world_model.evaluation.rollout import one_tick, rollout
from world_model.evaluation.sheets import contact_sheet, have_pillow, pick, strip
from world_model.evaluation.summary import summary_markdown
from world_model.evaluation.windows import CONTEXT, HeldOut, held_out, windows
from world_model.types import DataError

SCHEMA = 1


@dataclass(frozen=True)
class Plan:
    """How much is measured. Counts are windows, rollouts or starts; the rest are ticks."""

    windows: int = 64
    ticks: int = 256
    all_windows: int = 32
    long_windows: int = 32
    long_ticks: int = 1000
    collapse_rollouts: int = 50
    collapse_ticks: int = 1000
    starts: int = 64
    turns: int = 16
    walks: int = 8
    walk_ticks: int = 400
    realness_clips: int = 48
    probe_windows: int = 32
    batch: int = 16
    seed: int = 0


FULL = Plan()
FIGURES = Plan(
    windows=34,
    ticks=128,
    all_windows=0,
    long_windows=17,
    long_ticks=500,
    starts=48,
    turns=8,
    walks=0,
    realness_clips=0,
    probe_windows=0,
)
"""What decides whether a checkpoint replaces another, and no more."""
QUICK = Plan(
    windows=16,
    ticks=128,
    all_windows=0,
    long_windows=8,
    long_ticks=500,
    collapse_rollouts=8,
    collapse_ticks=300,
    starts=16,
    turns=4,
    walks=0,
    realness_clips=0,
    probe_windows=0,
)


def evaluate(
    dreamer: Dreamer,
    root: Path,
    quick: bool,
    out: Path,
    source: str | None = None,
    plan: Plan | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Measures a dreamer on the held-out split of `root` and writes the report into `out`.

    Files: eval.json, eval.md, strip_best.png, strip_median.png, strip_worst.png and the end frames of the
    collapse rollouts, ends.jpg (ends.png without Pillow).

    `source` (a name for `make_source`) adds what only the real game can judge: full turns, walks there
    and back, and the collapse rule on the real game under the same actions. `progress` is told each
    part's name. Returns what `eval.json` holds. Raises DataError without held-out episodes, WorldError
    for a dreamer that returns broken frames and SourceError when the source is not installed.
    """
    plan = plan or (QUICK if quick else FULL)
    data = held_out(root)
    out.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {
        "schema": SCHEMA,
        "dreamer": dreamer.name,
        "plan": asdict(plan),
        "data": {
            "source": data.episodes[0].header.get("source"),
            "episodes": list(data.names),
            "ticks": sum(map(len, data.episodes)),
            "context": CONTEXT,
            "fps": data.episodes[0].header.get("fps"),
        },
    }
    result |= _rollouts(dreamer, data, plan, out, progress)
    result |= _control(dreamer, data, plan, progress)
    result |= _collapse(dreamer, data, plan, out, source, progress)
    result |= _networks(dreamer, data, root, plan, progress)
    if source is not None:
        result |= _revisits(dreamer, source, plan, progress)
    _write(out, result)
    return result


def _rollouts(
    dreamer: Dreamer, data: HeldOut, plan: Plan, out: Path, progress: Callable[[str], None]
) -> dict[str, Any]:
    progress("one tick")
    short = windows(data, 32, plan.windows, moving=True, seed=plan.seed)
    result = {"one_tick": one_tick(dreamer, short)}
    progress("rollout")
    clips = windows(data, _reach(data, plan.ticks), plan.windows, moving=True, seed=plan.seed)
    result["rollout"] = rollout(dreamer, clips, batch=plan.batch)
    _strips(dreamer, clips, result["rollout"], out)
    if plan.all_windows:
        progress("rollout, all windows")
        every = windows(data, clips[0].ticks, plan.all_windows, moving=False, seed=plan.seed)
        result["rollout_all"] = rollout(dreamer, every, batch=plan.batch)
    progress("long rollout")
    far = windows(data, _reach(data, plan.long_ticks), plan.long_windows, moving=True, seed=plan.seed)
    result["rollout_long"] = rollout(dreamer, far, batch=plan.batch)
    return result


def _control(dreamer: Dreamer, data: HeldOut, plan: Plan, progress: Callable[[str], None]) -> dict[str, Any]:
    progress("control")
    clips = windows(data, 8, plan.starts, moving=True, seed=plan.seed + 1)
    result: dict[str, Any] = {
        "delta_psnr": delta_psnr(dreamer, clips, len(data.actions), seed=plan.seed, batch=plan.batch)
    }
    if {"left", "right"} <= set(data.actions):
        result["control"] = control(dreamer, clips, data.actions, plan.batch)
        result["control"]["real"] = real_turns(data)
    return result


def _collapse(
    dreamer: Dreamer,
    data: HeldOut,
    plan: Plan,
    out: Path,
    source: str | None,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    progress("collapse")
    means = real_means(data)
    count, ticks = plan.collapse_rollouts, plan.collapse_ticks
    found = collapse(dreamer, data, count, ticks, plan.seed, plan.batch, means)
    contact_sheet(out / ("ends.jpg" if have_pillow() else "ends.png"), found.ends)
    result = {"collapse": found.summary | {"real_recorded": false_alarms(data, means)}}
    if source is not None:
        game = make_source(source)
        try:
            result["collapse"]["real_same_actions"] = real_rollouts(game, means, count, ticks, plan.seed)
        finally:
            game.close()
    return result


def _networks(
    dreamer: Dreamer, data: HeldOut, root: Path, plan: Plan, progress: Callable[[str], None]
) -> dict[str, Any]:
    """The two protocols that train a small network; the probe needs training episodes with a pose."""
    result: dict[str, Any] = {}
    if plan.realness_clips:
        progress("real or dream")
        result["real_or_dream"] = real_or_dream(dreamer, data, plan.realness_clips, seed=plan.seed)
    if plan.probe_windows and data.episodes[0].pose is not None and (root / "train").is_dir():
        progress("probe")
        clips = windows(data, _reach(data, plan.ticks), plan.probe_windows, moving=True, seed=plan.seed)
        result["probe"] = path_error(dreamer, train_probe(root, seed=plan.seed), clips, plan.batch)
    return result


def _revisits(dreamer: Dreamer, source: str, plan: Plan, progress: Callable[[str], None]) -> dict[str, Any]:
    progress("full turn")
    game = make_source(source)
    try:
        result = {"turn": turn(dreamer, turn_clips(game, plan.turns, seed=plan.seed), plan.batch)}
        if plan.walks:
            progress("there and back")
            result["retrace"] = retrace(dreamer, there_and_back(game, plan.walks, plan.walk_ticks))
    finally:
        game.close()
    return result


def _reach(data: HeldOut, ticks: int) -> int:
    """As many of the wanted ticks as the longest held-out episode allows."""
    return max(1, min(ticks, max(len(e.frames) for e in data.episodes) - CONTEXT))


def _strips(dreamer: Dreamer, clips: list[Clip], result: dict[str, Any], out: Path) -> None:
    """Best, median and worst by gain at tick 128, or at the last tick that was measured."""
    at = max((int(k) for k in result["per_clip"] if int(k) <= 128), default=1)
    chosen = pick(result["per_clip"][str(at)]["gain"])
    result["strips"] = {"by": f"gain at tick {at}", **chosen}
    for label, index in chosen.items():
        strip(out / f"strip_{label}.png", dreamer, clips[index])


def _write(out: Path, result: dict[str, Any]) -> None:
    try:
        text = json.dumps(result, indent=1, allow_nan=False)
    except ValueError as err:
        raise DataError("the evaluation came to a NaN; nothing was written") from err
    partial = out / "eval.json.partial"
    try:
        partial.write_text(text)
        os.replace(partial, out / "eval.json")
        (out / "eval.md").write_text(summary_markdown(result))
    except OSError as err:
        raise DataError(f"cannot write {out}: {err.strerror}; choose another folder") from err
