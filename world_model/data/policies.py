"""Walks for collecting: random keys stare at walls, so these look where they go.

A `Walker` mixes behaviours, each held for a while: wandering that turns away when blocked, visits to
the least seen places, turning on the spot, out-and-back walks along its own trail, short random taps
and standing still. Behaviours that need a pose are left out for sources that have none. A game that is not
played with arrows gets actions at random, each held for a while.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterator
from typing import Final

import numpy as np

from world_model.data.sources import Observation
from world_model.types import Action

CELL: Final = 32.0
"""Side of a coverage cell in map units."""

NEAR: Final = 24.0
"""Clearance in map units below which a wanderer turns away."""

MODES: Final = {
    "wander": (0.42, 250),
    "explore": (0.26, 250),
    "look": (0.08, 90),
    "back": (0.1, 220),
    "taps": (0.08, 50),
    "still": (0.02, 12),
    "reverse": (0.05, 25),
}
"""Share of choices and longest duration in ticks of each behaviour."""

NEEDS_POSE: Final = ("explore", "back", "round", "home", "again")

Cell = tuple[int, int]


def cell_of(x: float, y: float) -> Cell:
    return int(x // CELL), int(y // CELL)


class Walker:
    """Chooses an action for each observation. Deterministic for a given seed and source.

    `visits` counts visits to cells and is shared between episodes so that exploring goes on.
    """

    modes = MODES

    def __init__(self, actions: tuple[Action, ...], seed: int, visits: Counter[Cell] | None = None) -> None:
        self._rng = np.random.default_rng(seed)
        self._index = {frozenset(a.default_keys): i for i, a in enumerate(actions)}
        self._count = len(actions)
        self._visits = visits if visits is not None else Counter()
        self._trail: deque[tuple[float, float]] = deque(maxlen=400)
        self._stuck = 0
        self._drawn, self._drawn_left = 0, 0
        self._plan: Iterator[int] = iter(())
        self._obs: Observation | None = None

    def act(self, obs: Observation) -> int:
        """The action (index) to take after `obs`."""
        self._notice(obs)
        for _ in range(4):
            action = next(self._plan, None)
            if action is not None:
                return action
            self._plan = self._choose()
        return self._key()

    @property
    def blocked(self) -> bool:
        """Whether the last ticks went forward without getting anywhere."""
        return self._stuck >= 3

    def _notice(self, obs: Observation) -> None:
        previous, self._obs = self._obs, obs
        if obs.pose is None:
            same = previous is not None and np.array_equal(previous.image, obs.image)
            self._stuck = self._stuck + 1 if same else 0
            return
        x, y = float(obs.pose[0]), float(obs.pose[1])
        self._visits[cell_of(x, y)] += 1
        moved = math.inf if previous is None else math.dist((x, y), previous.pose[:2])  # type: ignore[index]
        self._stuck = self._stuck + 1 if moved < 1.0 else 0
        if not self._trail or math.dist((x, y), self._trail[-1]) > CELL / 2:
            self._trail.append((x, y))

    def _key(self, *keys: str) -> int:
        """The action of these keys, or of the first of them. A game that knows neither gets one at random."""
        action = self._index.get(frozenset(keys), self._index.get(frozenset(keys[:1])))
        return self._draw() if action is None else action

    def _draw(self) -> int:
        """Any action, the same for some ticks: what is held for one tick does little in most games."""
        if self._drawn_left == 0:
            self._drawn, self._drawn_left = int(self._rng.integers(self._count)), self._hold(1, 12)
        self._drawn_left -= 1
        return self._drawn

    def _choose(self) -> Iterator[int]:
        modes = {m: v for m, v in self.modes.items() if self._has_pose() or m not in NEEDS_POSE}
        weights = np.array([share for share, _ in modes.values()])
        mode = list(modes)[self._rng.choice(len(modes), p=weights / weights.sum())]
        ticks = int(self._rng.integers(max(1, modes[mode][1] // 4), modes[mode][1] + 1))
        walk: Iterator[int] = getattr(self, f"_{mode}")(ticks)
        return walk

    def _has_pose(self) -> bool:
        return self._obs is not None and self._obs.pose is not None

    def _hold(self, low: int, high: int) -> int:
        return int(self._rng.integers(low, high + 1))

    def _wander(self, ticks: int) -> Iterator[int]:
        keys: tuple[str, ...]
        while ticks > 0:
            if self._wall_ahead():
                keys, hold = (self._open_side(),), self._hold(3, 14)
            elif self._rng.random() < 0.5:
                keys, hold = ("up",), self._hold(4, 40)
            else:
                side = self._side()
                keys = ("up", side) if self._rng.random() < 0.85 else (side,)
                hold = self._hold(2, 14)
            for _ in range(hold):
                yield self._key(*keys)
                ticks -= 1
                if "up" in keys and self._wall_ahead():
                    break
            self._stuck = 0

    def _explore(self, ticks: int) -> Iterator[int]:
        while ticks > 0:
            heading = self._least_seen_heading()
            for _ in range(min(ticks, self._hold(12, 40))):
                yield self._steer(heading)
                ticks -= 1
                if self._wall_ahead():
                    self._mark_blocked(heading)
                    break
            if self._wall_ahead():
                side, turn = self._open_side(), self._hold(2, 12)
                yield from (self._key(side) for _ in range(turn))
                ticks -= turn

    def _look(self, ticks: int) -> Iterator[int]:
        side = self._side()
        while ticks > 0:
            hold = self._hold(4, 75)
            for _ in range(min(hold, ticks)):
                yield self._key(side)
            ticks -= hold
            if self._rng.random() < 0.4:
                yield from (self._key() for _ in range(self._hold(1, 8)))
            if self._rng.random() < 0.3:
                side = "left" if side == "right" else "right"

    def _back(self, ticks: int) -> Iterator[int]:
        """Returns along its own trail: turns round, then walks from crumb to crumb."""
        crumbs = list(self._trail)[:-1]
        while ticks > 0 and crumbs:
            target = crumbs[-1]
            x, y, _ = self._pose()
            if math.dist((x, y), target) < CELL * 0.6:
                crumbs.pop()
                continue
            yield self._steer(math.atan2(target[1] - y, target[0] - x))
            ticks -= 1
            if self._stuck > 8:
                return

    def _taps(self, ticks: int) -> Iterator[int]:
        while ticks > 0:
            action, hold = int(self._rng.integers(self._count)), self._hold(1, 6)
            yield from (action for _ in range(hold))
            ticks -= hold

    def _still(self, ticks: int) -> Iterator[int]:
        yield from (self._key() for _ in range(ticks))

    def _reverse(self, ticks: int) -> Iterator[int]:
        yield from (self._key("down") for _ in range(ticks))

    def _wall_ahead(self) -> bool:
        """A wall at arm's length: seen in the depth buffer where there is one, else felt."""
        clearance = self._obs.clearance if self._obs else None
        return self.blocked or (clearance is not None and clearance[1] < NEAR)

    def _open_side(self) -> str:
        clearance = self._obs.clearance if self._obs else None
        if clearance is None or self._rng.random() < 0.25:
            return self._side()
        return "left" if clearance[0] > clearance[2] else "right"

    def _side(self) -> str:
        return "left" if self._rng.random() < 0.5 else "right"

    def _pose(self) -> tuple[float, float, float]:
        assert self._obs is not None and self._obs.pose is not None
        x, y, heading = self._obs.pose
        return float(x), float(y), float(heading)

    def _steer(self, heading: float) -> int:
        """Turns toward a heading; walks as soon as it roughly faces it."""
        error = math.remainder(heading - self._pose()[2], math.tau)
        side = "left" if error > 0 else "right"
        if abs(error) > 0.8:
            return self._key(side)
        return self._key("up", side) if abs(error) > 0.12 else self._key("up")

    def _least_seen_heading(self) -> float:
        x, y, heading = self._pose()
        candidates = heading + np.arange(12) * math.tau / 12 + self._rng.uniform(-0.2, 0.2)

        def seen(angle: float) -> float:
            steps = (1.0, 2.0, 3.5, 5.0)
            ahead = [cell_of(x + math.cos(angle) * CELL * s, y + math.sin(angle) * CELL * s) for s in steps]
            turn = abs(math.remainder(angle - heading, math.tau))
            return sum(math.sqrt(self._visits[c]) for c in ahead) * (1 + 0.1 * turn) + self._rng.random()

        return float(min(candidates, key=seen))

    def _mark_blocked(self, heading: float) -> None:
        """A wall counts as seen, or exploring would run into it for ever."""
        x, y, _ = self._pose()
        ahead = cell_of(x + math.cos(heading) * CELL, y + math.sin(heading) * CELL)
        self._visits[ahead] += 200
