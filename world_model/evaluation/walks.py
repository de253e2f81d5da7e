"""Real play made for the memory protocols: full turns, and walks there and back by mirrored actions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from world_model.data.sources import Observation, Source
from world_model.evaluation.protocol import Clip, Ints
from world_model.evaluation.wander import mirrored, named
from world_model.evaluation.windows import CONTEXT, HeldOut
from world_model.types import DataError

FIRST_SEED = 1_700_000_000
"""Beyond the seeds of every split."""

LONGEST_TURN = 400
NEAR = 64.0
"""Clearance in map units below which a walk turns: bumping into a wall cannot be walked backwards."""
PAUSE = 10
"""Idle ticks between out and back: what slides comes to rest, as it did before the first step."""

CANDIDATES = 2
FEWEST_TURNS = 2
"""A turn is compared with another one."""

SAME_UNITS, SAME_DEGREES = 32.0, 5.0
"""The real game is back at a remembered place when its pose is no farther from the pose of then."""

GATHERING = 8
"""Ticks after which a held turn has its full speed."""

NEEDED = ("idle", "forward", "back", "left", "right")


class EndedError(DataError):
    """The game ended in the middle of what was played, as by the player's death."""


def can_mirror(names: Sequence[str]) -> bool:
    """Whether a game's actions can be undone by others."""
    return set(NEEDED) <= set(names)


def turn_clips(source: Source, count: int, context: int = CONTEXT, seed: int = 0) -> list[Clip]:
    """Real full turns: idle through the context, then `left` until the heading has come round.

    The clip ends at the tick whose heading is nearest to 360 degrees. A game that ends before its player
    came round is left out: up to `CANDIDATES` times as many are begun. Raises DataError for a source
    without pose or without such a turn, and where fewer than two are left.
    """
    names = [a.name for a in source.actions]
    left, idle = named(names, "left"), named(names, "idle") or 0
    if left is None:
        raise DataError(f"{source.name} has no action named left")
    turns: list[Clip] = []
    ended = 0
    while len(turns) < count and len(turns) + ended < CANDIDATES * count:
        try:
            each = FIRST_SEED + seed + len(turns) + ended
            turns.append(_turn_clip(source, each, context, left, idle))
        except EndedError:
            ended += 1
    if ended and len(turns) < FEWEST_TURNS:
        raise DataError(f"the game ended during {ended} of {len(turns) + ended} turns")
    return turns


def there_and_back(
    source: Source, count: int, ticks: int, context: int = CONTEXT, seed: int = 0
) -> list[Clip]:
    """Real walks of `ticks` ticks out, `PAUSE` idle ones, then the mirrored actions back.

    The context stands idle. The walk keeps clear of walls where the source tells what is near; even so
    the game need not return exactly, so of `CANDIDATES` times as many walks those are taken in which the
    real game is back for most ticks (no dream is asked). Raises DataError for a source whose actions
    cannot be undone, and where too few walks end as they should.
    """
    names = [a.name for a in source.actions]
    if not can_mirror(names):
        raise DataError(f"{source.name} cannot be walked backwards: it lacks one of {', '.join(NEEDED)}")
    seeds = range(FIRST_SEED + seed, FIRST_SEED + seed + CANDIDATES * count)
    walks, ended = [], 0
    for each in seeds:
        try:
            walks.append(_there_and_back(source, names, ticks, context, each))
        except EndedError:
            ended += 1
    if len(walks) < count:
        raise DataError(f"the game ended during {ended} of {len(seeds)} walks of {ticks} ticks and back")
    comes_back = [sum(seen_at(w, ticks + PAUSE, k)[1] for k in range(1, ticks + 1)) for w in walks]
    best = sorted(range(len(walks)), key=lambda i: -comes_back[i])[:count]
    return [walks[i] for i in sorted(best)]


def way_out(clip: Clip) -> int:
    """Ticks of the way out of a clip of `there_and_back`; the way back is as long."""
    return (clip.ticks - PAUSE) // 2


def remembering(clips: Sequence[Clip], phases: int) -> list[Clip]:
    """The same walks with the way out and the pause as context: seen as real frames; the way back is left
    to be dreamed."""
    found = []
    for clip in clips:
        first = clip.context - 1  # where the walk begins
        found.append(
            replace(
                clip,
                frames=clip.frames[first:],
                actions=clip.actions[first:],
                pose=None if clip.pose is None else clip.pose[first:],
                phase=(clip.phase + first) % phases,
                context=way_out(clip) + PAUSE + 1,
                start=clip.start + first,
                history=np.asarray(clip.actions[:first], np.int64),
            )
        )
    return found


def seen_at(clip: Clip, turned: int, k: int) -> tuple[int, bool]:
    """When the view of `k` ticks on the way back was seen on the way out: the tick, and whether the real
    game is back there within `SAME_UNITS` and `SAME_DEGREES`.

    `turned`: the tick at which the way back begins; ticks as in `Clip.real`. The nearest real pose of the
    way out counts, since a player who slides comes by a little later; without a pose, the mirrored tick.
    """
    last = turned - PAUSE
    if clip.pose is None:
        return last - k, True
    zero = clip.context - 1
    first = last - (clip.ticks - turned)  # the way out is as long as the way back
    out, now = clip.pose[zero + first : zero + last + 1], clip.pose[zero + turned + k]
    away = np.hypot(*(out - now)[:, :2].T) / SAME_UNITS
    turn = np.abs(np.remainder((out - now)[:, 2] + np.pi, 2 * np.pi) - np.pi) / np.radians(SAME_DEGREES)
    best = int(np.argmin(away + turn))
    return first + best, bool(away[best] <= 1 and turn[best] <= 1)


def turn_ticks(data: HeldOut) -> int | None:
    """Ticks of `left` that make a full turn, read off the recorded poses; None where that is impossible."""
    left = named(data.actions, "left")
    if left is None or any(e.pose is None for e in data.episodes):
        return None
    turned: list[list[float]] = [[] for _ in range(GATHERING + 1)]  # by ticks since left was pressed
    for episode in data.episodes:
        heading = np.unwrap(np.asarray(episode.pose)[:, 2].astype(np.float64))
        run = 0
        for step, action in zip(np.abs(np.diff(heading)), episode.actions, strict=True):
            run = run + 1 if action == left else 0
            if run:
                turned[min(run, GATHERING + 1) - 1].append(float(step))
    if not all(turned) or not np.mean(turned[-1]) > 0:
        return None
    gathered = sum(float(np.mean(steps)) for steps in turned[:-1])
    return GATHERING + round((math.tau - gathered) / float(np.mean(turned[-1])))


def out_and_back(names: Sequence[str], ticks: int, seed: int, phases: int = 1) -> Ints:
    """Actions (2 ticks + PAUSE,): forward with short turns, a pause, then what undoes them; blind to walls.

    Keys are held for whole rounds of the source's clock (`phases` ticks), so that a key is held for as
    long in the game's own time on the way back.
    """
    out = _walk(names, ticks, seed, phases)
    return np.concatenate([out, np.full(PAUSE, names.index("idle")), mirrored(names, out)])


def _walk(names: Sequence[str], ticks: int, seed: int, phases: int) -> Ints:
    rng = np.random.default_rng(seed)
    plan: list[int] = []
    while len(plan) < ticks:
        name = ("forward", "left", "right")[rng.choice(3, p=(0.4, 0.3, 0.3))]
        if plan and plan[-1] != names.index("forward"):
            name = "forward"  # see _against
        hold = rng.integers(8, 30) if name == "forward" else rng.integers(5, 15)
        plan += [names.index(name)] * (-(-int(hold) // phases) * phases)
    return np.array(plan[:ticks], np.int64)


def _there_and_back(source: Source, names: Sequence[str], ticks: int, context: int, seed: int) -> Clip:
    rng = np.random.default_rng(seed)
    wanted = _walk(names, ticks, seed, source.phases)
    idle = names.index("idle")
    observations, actions = [source.reset(seed)], []

    def play(plan: Iterable[int]) -> None:
        for action in plan:
            actions.append(int(action))
            observations.append(_lives(source.step(int(action)), seed))

    play([idle] * (context - 1))
    rounds = source.phases
    while len(actions) < context - 1 + ticks:
        done = len(actions) - context + 1
        if _blocked(observations[-1]):
            side = names.index(_open_side(observations[-1]))
            plan = [side] * (rounds * -(-int(rng.integers(6, 20)) // rounds))
        else:
            plan = [int(a) for a in wanted[done : done + rounds]]
        if _against(names, actions[-1], plan[0]):
            plan = [idle] * rounds
        play(plan[: ticks - done])
    out = np.array(actions[context - 1 :], np.int64)
    play([idle] * PAUSE)
    play(mirrored(names, out))
    return clip_of(observations, np.array(actions, np.int64), context, seed)


def _against(names: Sequence[str], last: int, following: int) -> bool:
    """Whether a turn follows at once on a turn the other way. Doom turns slowly at first, and only then not:
    undone in reverse order, such a pair would not end where it began."""
    sides = {names.index("left"), names.index("right")}
    return {last, following} == sides


def _blocked(obs: Observation) -> bool:
    return obs.clearance is not None and obs.clearance[1] < NEAR


def _open_side(obs: Observation) -> str:
    return "left" if obs.clearance is None or obs.clearance[0] >= obs.clearance[2] else "right"


def _turn_clip(source: Source, seed: int, context: int, left: int, idle: int) -> Clip:
    observations, actions = [source.reset(seed)], []
    for _ in range(context - 1):
        observations.append(_lives(source.step(idle), seed))
        actions.append(idle)
    turned = [0.0]
    while turned[-1] < math.tau:
        if len(turned) > LONGEST_TURN:
            raise DataError(f"{source.name} does not come round in {LONGEST_TURN} ticks of left")
        before = _heading(source, observations[-1])
        observations.append(_lives(source.step(left), seed))
        actions.append(left)
        turned.append(turned[-1] + abs(math.remainder(_heading(source, observations[-1]) - before, math.tau)))
    if abs(turned[-2] - math.tau) < abs(turned[-1] - math.tau):
        observations, actions = observations[:-1], actions[:-1]
    return clip_of(observations, np.array(actions), context, seed)


def clip_of(observations: list[Observation], actions: Ints, context: int, seed: int) -> Clip:
    """A clip of what a source showed from its reset with `seed` on. Raises EndedError where it ended."""
    for obs in observations:
        _lives(obs, seed)
    poses = [o.pose for o in observations]
    return Clip(
        frames=np.stack([o.image for o in observations]),
        actions=actions,
        pose=None if poses[0] is None else np.stack([p for p in poses if p is not None]),
        phase=observations[0].phase,
        context=context,
        episode=f"seed {seed}",
        start=0,
        seed=seed,
        history=np.zeros(0, np.int64),
    )


def _lives(obs: Observation, seed: int) -> Observation:
    if obs.terminated or obs.truncated:
        raise EndedError(f"the game ended during the walk of seed {seed}; ask for shorter ones")
    return obs


def _heading(source: Source, obs: Observation) -> float:
    if obs.pose is None:
        raise DataError(f"{source.name} has no pose, so a full turn cannot be measured")
    return float(obs.pose[2])
