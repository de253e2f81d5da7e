"""Walks that come back: what a memory is to be learned from and measured on.

Beside what every `Walker` does, this one draws a map of the free cells that it has seen. With it, it walks to
places where it never was, returns to the start or to any place that it left a while ago, by the shortest way
or by one that it did not just come by, which makes loops; there it may look around.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Iterator
from typing import Final

import numpy as np

from world_model.data.policies import CELL, MODES, Cell, Walker, cell_of
from world_model.data.sources import Observation
from world_model.types import Action

LATELY: Final = 250
"""Ticks for which a cell counts as just walked over."""
DETOUR: Final = 4.0
"""How much longer a way may be before cells that were just walked over are taken instead."""
AWAY: Final = 100
"""Ticks after which a place is worth going back to."""
SIGHT: Final = 640.0
"""Map units up to which depth is trusted for the map."""
RAY: Final = 12.0
"""Map units between two points of a line of sight."""
REACH: Final = 256.0
"""Map units that a walker looks ahead on its way."""
BODY: Final = 15.0
"""Half the width of a player in map units."""
BLOCK: Final = 4
"""Cells to a side of a block; a block where it walked is no new place."""
NEIGHBOURS: Final = tuple((x, y) for x in (-1, 0, 1) for y in (-1, 0, 1) if x or y)


class RevisitingWalker(Walker):
    """A walker for maps that are new every time. Without poses it only wanders."""

    modes = MODES | {
        "wander": (0.1, 150),
        "explore": (0.32, 400),
        "back": (0.1, 400),
        "home": (0.07, 600),
        "again": (0.14, 600),
        "round": (0.04, 110),
    }

    def __init__(self, actions: tuple[Action, ...], seed: int, visits: Counter[Cell] | None = None) -> None:
        super().__init__(actions, seed, visits)
        self._tick = 0
        self._walked: dict[Cell, int] = {}
        self._free: set[Cell] = set()

    def _notice(self, obs: Observation) -> None:
        super()._notice(obs)
        if obs.pose is None:
            return
        self._tick += 1
        here = self._here()
        self._walked[here] = self._tick
        self._free.add(here)
        if obs.depth is not None and self._tick % 4 == 1:
            self._free |= _free_cells(obs.depth[obs.depth.shape[0] // 2].astype(np.float64), *self._pose())

    def _here(self) -> Cell:
        return cell_of(*self._pose()[:2])

    def _explore(self, ticks: int) -> Iterator[int]:
        """Goes to a place that was seen, but where it never was; near ones are likelier."""
        trodden = {(x // BLOCK, y // BLOCK) for x, y in self._walked}
        new = [cell for cell in sorted(self._free) if (cell[0] // BLOCK, cell[1] // BLOCK) not in trodden]
        new = [cell for cell in new if self._room(cell) == 8]
        if not new:
            yield from super()._explore(min(ticks, 60))
            return
        distance = np.array([math.dist(cell, self._here()) for cell in new])
        yield from self._go(new[int(np.argmin(distance * self._rng.exponential(1.0, len(new))))], ticks)

    def _back(self, ticks: int) -> Iterator[int]:
        """Out and back: returns the way it came, to where it was so many ticks ago."""
        lately = [cell for cell, tick in self._walked.items() if self._tick - tick <= ticks]
        yield from self._go(min(lately, key=lambda cell: self._walked[cell]), ticks, detour=1.0)

    def _home(self, ticks: int) -> Iterator[int]:
        """Goes back to where the episode began."""
        yield from self._go(next(iter(self._walked)), ticks)

    def _again(self, ticks: int) -> Iterator[int]:
        """Goes back to a place that was left a while ago."""
        places = [cell for cell, tick in self._walked.items() if self._tick - tick >= AWAY]
        if places:
            yield from self._go(places[int(self._rng.integers(len(places)))], ticks)

    def _round(self, ticks: int) -> Iterator[int]:
        """Turns once around on the spot."""
        side, turned, last = self._side(), 0.0, self._pose()[2]
        for _ in range(2 * ticks):
            if turned >= math.tau:
                return
            yield self._key(side)
            heading = self._pose()[2]
            turned, last = turned + abs(math.remainder(heading - last, math.tau)), heading

    def _go(self, target: Cell, ticks: int, detour: float | None = None) -> Iterator[int]:
        """Walks to a cell, then perhaps looks around. What cannot be walked leaves the map.

        Half of the time it shuns cells that it just walked over, unless `detour` is told.
        """
        way = self._way_to(target, detour or (1.0, DETOUR)[int(self._rng.integers(2))])
        for _ in range(ticks):
            x, y, _ = self._pose()
            while len(way) > 1 and self._is_clear(x, y, *_middle(way[1])):
                way.pop(0)  # cuts corners
            if not way or math.dist((x, y), _middle(way[-1])) < CELL:
                if self._rng.random() < 0.2:
                    yield from self._round(60)
                return
            to_x, to_y = _middle(way[0])
            yield self._steer(math.atan2(to_y - y, to_x - x))
            if self._stuck > 8:
                self._free.discard(way[0])
                yield from self._reverse(5)
                return

    def _is_clear(self, x: float, y: float, to_x: float, to_y: float) -> bool:
        """Whether a body as wide as a player's can go straight from one point to another."""
        length = math.dist((x, y), (to_x, to_y))
        if length > REACH:
            return False
        count = int(length // RAY) + 2
        aside = BODY * (to_y - y) / max(length, 1.0), BODY * (x - to_x) / max(length, 1.0)
        for i in range(1, count):
            at_x, at_y = x + (to_x - x) * i / (count - 1), y + (to_y - y) * i / (count - 1)
            for side in (-1, 1):
                if cell_of(at_x + side * aside[0], at_y + side * aside[1]) not in self._free:
                    return False
        return True

    def _room(self, cell: Cell) -> int:
        """How many of the eight cells around a cell are free."""
        return sum((cell[0] + dx, cell[1] + dy) in self._free for dx, dy in NEIGHBOURS)

    def _way_to(self, target: Cell, detour: float) -> list[Cell]:
        """The cheapest way over free cells; cells just walked over cost `detour` times more."""
        heap: list[tuple[float, Cell, Cell]] = [(0.0, self._here(), self._here())]
        came: dict[Cell, Cell] = {}
        while heap and target not in came:
            cost, cell, before = heapq.heappop(heap)
            if cell in came:
                continue
            came[cell] = before
            for dx, dy in NEIGHBOURS:
                other = cell[0] + dx, cell[1] + dy
                corner = {(cell[0] + dx, cell[1]), (cell[0], cell[1] + dy)}
                if other in came or other not in self._free or not corner <= self._free:
                    continue
                step = math.hypot(dx, dy) * (1.0 + 0.4 * (8 - self._room(other)))
                trodden = self._tick - self._walked.get(other, -LATELY) < LATELY
                heapq.heappush(heap, (cost + step * (detour if trodden else 1.0), other, cell))
        way = [target]
        while target in came and came[way[-1]] != way[-1]:
            way.append(came[way[-1]])
        return way[::-1] if target in came else []


def _middle(cell: Cell) -> tuple[float, float]:
    return (cell[0] + 0.5) * CELL, (cell[1] + 0.5) * CELL


def _free_cells(depth: np.ndarray, x: float, y: float, heading: float) -> set[Cell]:
    """Cells that lines of sight at eye height cross before they meet something.

    depth: (W,), perpendicular to the picture plane, over a field of view of about 90 degrees.
    """
    aside = (np.arange(len(depth)) + 0.5) / len(depth) * 2 - 1
    ahead = np.arange(0.0, SIGHT, RAY)[:, None]
    free = ahead < depth - RAY
    xs = x + ahead * (math.cos(heading) + aside * math.sin(heading))
    ys = y + ahead * (math.sin(heading) - aside * math.cos(heading))
    cells = np.unique(np.stack([xs[free] // CELL, ys[free] // CELL], 1).astype(int), axis=0)
    return {(int(a), int(b)) for a, b in cells}
