"""The protocols by name: what each of them measures of a dreamer, ready for `eval.json`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from world_model.data.sources import make_source
from world_model.evaluation import sheets
from world_model.evaluation.collapse import collapse, false_alarms, real_means, real_rollouts
from world_model.evaluation.control import control, delta_psnr, real_turns
from world_model.evaluation.happenings import measure_all
from world_model.evaluation.plan import FULL, Plan
from world_model.evaluation.probe import path_error, train_probe
from world_model.evaluation.protocol import Clip, Dreamer
from world_model.evaluation.real import SourceDreamer
from world_model.evaluation.realness import CLIP_TICKS, real_or_dream
from world_model.evaluation.revisit import loop_closure, recall, retrace, turn
from world_model.evaluation.rollout import one_tick, rollout
from world_model.evaluation.walks import EndedError, remembering, there_and_back, turn_clips
from world_model.evaluation.windows import CONTEXT, HeldOut, windows
from world_model.types import DataError, SourceError

SHOWN_TICK = 128
"""Windows are ranked for the pictures by their gain at this tick, or at the last before it."""


GAMES = 8
"""Real games that run at once."""


@dataclass(frozen=True)
class Setting:
    """What a protocol works on. `source`: a name for `make_source`, or None; `root`: the data set."""

    dreamer: Dreamer
    data: HeldOut
    root: Path
    plan: Plan
    out: Path
    source: str | None = None


def measure_one_tick(s: Setting) -> dict[str, Any]:
    clips = windows(s.data, reach(s.data, 32), s.plan.windows, moving=True, seed=s.plan.seed)
    return {"one_tick": one_tick(s.dreamer, clips)}


def measure_rollout(s: Setting) -> dict[str, Any]:
    """Moving windows with their pictures, all windows, long ones."""
    plan = s.plan
    clips = windows(s.data, reach(s.data, plan.ticks), plan.windows, moving=True, seed=plan.seed)
    film = sheets.Film()
    found = rollout(s.dreamer, clips, batch=plan.batch, watch=film, watched=film.ticks)
    found["shown"] = _pictures(film, clips, found, s.out)
    result = {"rollout": found}
    if plan.all_windows:
        every = windows(s.data, clips[0].ticks, plan.all_windows, moving=False, seed=plan.seed)
        result["rollout_all"] = rollout(s.dreamer, every, batch=plan.batch)
    if plan.long_windows:
        ticks = reach(s.data, plan.long_ticks)
        far = windows(s.data, ticks, plan.long_windows, moving=True, seed=plan.seed)
        result["rollout_long"] = rollout(s.dreamer, far, batch=plan.batch)
    return result


def measure_control(s: Setting) -> dict[str, Any]:
    plan, names = s.plan, s.data.actions
    clips = windows(s.data, 8, plan.starts, moving=True, seed=plan.seed + 1)
    result: dict[str, Any] = {
        "delta_psnr": delta_psnr(s.dreamer, clips, len(names), seed=plan.seed, batch=plan.batch)
    }
    if {"left", "right"} <= set(names):
        result["control"] = control(s.dreamer, clips, names, plan.batch)
        result["control"]["real"] = real_turns(s.data)
    return result


def measure_collapse(s: Setting) -> dict[str, Any]:
    plan, means = s.plan, real_means(s.data)
    count, ticks = plan.collapse_rollouts, plan.collapse_ticks
    found = collapse(s.dreamer, s.data, count, ticks, plan.seed, plan.batch, means)
    sheets.contact_sheet(s.out / sheets.sheet_name("ends"), found.ends)
    result = {"collapse": found.summary | {"real_recorded": false_alarms(s.data, means)}}
    if s.source is not None:
        game = make_source(s.source, sound=False)
        try:
            result["collapse"]["real_same_actions"] = real_rollouts(game, means, count, ticks, plan.seed)
        finally:
            game.close()
    return result


def measure_memory(s: Setting) -> dict[str, Any]:
    """Loop closure of the dream with itself; with the source also full turns and walks there and back."""
    plan = s.plan
    result: dict[str, Any] = {}
    omitted: dict[str, str] = {}
    if plan.closures:
        loops = partial(loop_closure, s.dreamer, s.data, plan.closures, plan.seed, plan.batch)
        result |= _unless_ended("closure", loops, "loop closure", omitted)
    if s.source is None:
        omitted["full turns and walks there and back"] = "they need the source"
        return result | {"omitted": omitted}
    if "closure" in result:
        result |= _real_closure(s, s.source, omitted)
    game = make_source(s.source, sound=False)
    try:
        turns: list[Clip] = []
        walks: list[Clip] = []
        if plan.turns:
            turns = _played(partial(turn_clips, game, plan.turns, seed=plan.seed), "full turns", omitted)
        if plan.walks:
            play = partial(there_and_back, game, plan.walks, plan.walk_ticks, seed=plan.seed)
            walks = _played(play, "walks there and back", omitted)
        phases = game.phases
    finally:
        game.close()
    if turns:
        result |= _unless_ended("turn", partial(turn, s.dreamer, turns, plan.batch), "full turns", omitted)
    if walks:
        back = partial(recall, s.dreamer, remembering(walks, phases))
        result |= _unless_ended("recall", back, "the way back along what was seen", omitted)
        both = partial(retrace, s.dreamer, walks)
        result |= _unless_ended("retrace", both, "there and back", omitted)
    return result | {"omitted": omitted}


def _unless_ended(
    key: str, measure: Callable[[], dict[str, Any]], what: str, omitted: dict[str, str]
) -> dict[str, Any]:
    """What was measured, under `key`; nothing, and why, where the real game as a dreamer ended under way."""
    try:
        found = measure()
    except EndedError as err:
        omitted[what] = str(err)
        return {}
    return {key: found} if found else {}


def _played(play: Callable[[], list[Clip]], what: str, omitted: dict[str, str]) -> list[Clip]:
    """What was played in the real game for a protocol; none, and why, where the game does not allow it."""
    try:
        return play()
    except DataError as err:
        omitted[what] = str(err)
        return []


def _real_closure(s: Setting, source: str, omitted: dict[str, str]) -> dict[str, Any]:
    """The same loops in the real game: how well it comes back itself."""
    game = SourceDreamer(source, partial(make_source, source, sound=False))
    try:
        return {"closure_real": loop_closure(game, s.data, s.plan.closures, s.plan.seed, GAMES)}
    except (
        SourceError,
        DataError,
    ) as err:  # a recording that cannot be played again is no fault of the dream
        omitted["the same loops in the real game"] = str(err)
        return {}
    finally:
        game.close()


def measure_realness(s: Setting) -> dict[str, Any]:
    """A small plan looks at short clips alone."""
    if not s.plan.realness_clips:
        return {}
    count = s.plan.realness_clips
    lengths = CLIP_TICKS if count >= FULL.realness_clips else CLIP_TICKS[:1]
    return {"real_or_dream": real_or_dream(s.dreamer, s.data, count, seed=s.plan.seed, lengths=lengths)}


def measure_probe(s: Setting) -> dict[str, Any]:
    """Needs recorded poses, and training episodes to learn them from."""
    plan = s.plan
    if not plan.probe_windows:
        return {}
    if s.data.episodes[0].pose is None:
        return {"omitted": {"probe": "the episodes have no pose"}}
    if not (s.root / "train").is_dir():
        return {"omitted": {"probe": "there are no training episodes to learn from"}}
    clips = windows(s.data, reach(s.data, plan.ticks), plan.probe_windows, moving=True, seed=plan.seed)
    return {"probe": path_error(s.dreamer, train_probe(s.root, seed=plan.seed), clips, plan.batch)}


def measure_events(s: Setting) -> dict[str, Any]:
    """Only of sources of which it is known where things happen; needs training episodes for its probes."""
    return measure_all(s.dreamer, s.data, s.root, s.plan, s.out, s.source)


MEASURES: dict[str, Callable[[Setting], dict[str, Any]]] = {
    "one-tick": measure_one_tick,
    "rollout": measure_rollout,
    "control": measure_control,
    "collapse": measure_collapse,
    "memory": measure_memory,
    "real-or-dream": measure_realness,
    "probe": measure_probe,
    "events": measure_events,
}
"""By the names of `plan.PROTOCOLS`."""


def reach(data: HeldOut, ticks: int) -> int:
    """As many of the wanted ticks as the longest held-out episode allows."""
    return max(1, min(ticks, max(len(e.frames) for e in data.episodes) - CONTEXT))


def _pictures(film: sheets.Film, clips: list[Clip], found: dict[str, Any], out: Path) -> dict[str, Any]:
    """Strips and moving pictures of the best, median and worst window, and a sheet of all windows."""
    at = max((int(k) for k in found["per_clip"] if int(k) <= SHOWN_TICK), default=1)
    gains = found["per_clip"][str(at)]["gain"]
    chosen = sheets.pick(gains)
    for label, index in chosen.items():
        shot = film.shot(index)
        sheets.strip(out / f"strip_{label}.png", shot, clips[index])
        if sheets.have_pillow():
            sheets.film(out / f"film_{label}.gif", shot, clips[index])
    order = [int(i) for i in np.argsort(-np.asarray(gains), kind="stable")]
    sheets.windows_sheet(out / sheets.sheet_name("windows"), film, clips, at, order)
    return {"by": f"gain at tick {at}", **chosen}
