"""From a plan of cells to tiles: rooms, passages, what stands in rooms, and landmarks."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
from numpy.random import Generator

from world_model.data.mazes.plan import Cell, Plan, Recipe, Region, Room, pick
from world_model.data.mazes.themes import LAMPS, SKY_FLAT, THING_WORDS

TILE = 32
"""Side of a tile in map units; a player is 32 wide."""
OPEN = 6
"""Tiles of a cell between its walls; walls are one tile thick."""
PITCH = OPEN + 1
MARGIN = 3
"""Tiles that stay free between a hall's walls and what stands in its middle."""
SIDES = ((0, 1), (1, 0), (0, -1), (-1, 0))
"""Row and column steps to the east, north, west and south."""


@dataclass(frozen=True)
class Area:
    """What tiles of one kind look like: heights in map units, light 0..255, textures, flats."""

    floor: int
    ceiling: int
    light: int
    wall: str
    trim: str
    floor_flat: str
    ceiling_flat: str


@dataclass(frozen=True)
class Panel:
    """One picture on a wall; `number` tells neighbouring panels apart."""

    texture: str
    number: int


@dataclass(frozen=True)
class Thing:
    """A decoration by its editor number, at x and y in map units."""

    number: int
    x: int
    y: int


class Builder:
    """Fills `tiles`, `areas`, `blocks`, `panels` and `things` (see `layout.Layout`) from a plan."""

    def __init__(self, rng: Generator, plan: Plan, recipe: Recipe, liquid: str, flooded: int | None) -> None:
        self._rng, self._plan, self._recipe = rng, plan, recipe
        self._liquid, self._flooded = liquid, flooded
        rows, columns = plan.shape
        self.tiles = np.full((rows * PITCH + 1, columns * PITCH + 1), -1, np.int16)
        self.areas: list[Area] = []
        self.blocks: dict[tuple[int, int], str] = {}
        self.panels: dict[tuple[int, int, int], Panel] = {}
        self.things: list[Thing] = []
        self._seen: set[str] = set()

    def build(self) -> None:
        for room in self._plan.rooms:
            self._open_room(room)
        for link in sorted(self._plan.links):
            self._open_passage(*link)
        for room in self._plan.rooms:
            if min(room.rows, room.columns) > 1:
                self._furnish(room)
        self._hang_panels()
        self._place_things()

    def start(self) -> tuple[int, int, int]:
        """The middle of a corridor, looking roughly along one of its ways."""
        row, column = pick(self._rng, [(r.row, r.column) for r in self._plan.rooms if not r.is_hall])
        half = PITCH * TILE // 2 + TILE // 2
        x, y = column * PITCH * TILE + half, row * PITCH * TILE + half
        ways = [side for side, (down, right) in enumerate(SIDES) if self._is_open(row, column, down, right)]
        return x, y, (90 * pick(self._rng, ways) + int(self._rng.integers(-30, 31))) % 360

    def _is_open(self, row: int, column: int, down: int, right: int) -> bool:
        pair = sorted([(row, column), (row + down, column + right)])
        return (pair[0], pair[1]) in self._plan.links

    def extras(self, liquid: str | None) -> list[str]:
        """At most three things to mention; `liquid` names that of the pools unless it is told already."""
        features = {"pool": f"{liquid} pools", "dais": "platforms", "pillars": "pillars"}
        seen = [text for key, text in features.items() if key in self._seen and (key != "pool" or liquid)]
        placed = Counter(thing.number for thing in self.things)
        counts = {word: sum(placed[number] for number in numbers) for word, numbers in THING_WORDS}
        common = sorted((word for word in counts if counts[word]), key=lambda word: -counts[word])
        return seen[:2] + common[: 3 - len(seen[:2])]

    def _area(self, area: Area) -> int:
        if area not in self.areas:
            self.areas.append(area)
        return self.areas.index(area)

    def _look(self, room: Room) -> Area:
        region = self._plan.regions[room.region]
        return Area(
            room.floor,
            room.ceiling,
            int(np.clip(region.light + 16 * (room.row + room.column) % 32, 96, 255)),
            region.wall,
            region.trim,
            self._liquid if room.region == self._flooded else region.floor,
            SKY_FLAT if region.outdoor else region.ceiling,
        )

    def _is_narrow(self, cell: Cell) -> bool:
        return self._plan.region(cell).narrow and not self._plan.room(cell).is_hall

    def _open_room(self, room: Room) -> None:
        inset = int(self._is_narrow((room.row, room.column)))
        bottom, left = room.row * PITCH + 1 + inset, room.column * PITCH + 1 + inset
        top = (room.row + room.rows) * PITCH - inset
        right = (room.column + room.columns) * PITCH - inset
        self.tiles[bottom:top, left:right] = self._area(self._look(room))

    def _open_passage(self, a: Cell, b: Cell) -> None:
        """Four or six tiles wide; the tile within the wall may be an arch with a lower ceiling."""
        narrow = self._is_narrow(a), self._is_narrow(b)
        sky = self._plan.region(a).outdoor and self._plan.region(b).outdoor
        arch = not sky and (
            self._rng.random() < 0.5 or self._plan.room(a).region != self._plan.room(b).region
        )
        inset = int(any(narrow) or arch or self._rng.random() < 0.4)
        first, second = self._look(self._plan.room(a)), self._look(self._plan.room(b))
        own = self._area(_arch(first, second) if arch else max(first, second, key=lambda look: look.floor))
        wall = (b[0] if a[1] == b[1] else b[1]) * PITCH
        across = (a[1] if a[1] == b[1] else a[0]) * PITCH
        tiles = self.tiles if a[1] == b[1] else self.tiles.T  # along the rows in either case
        sides = slice(across + 1 + inset, across + 1 + OPEN - inset)
        tiles[wall, sides] = own
        if narrow[0]:
            tiles[wall - 1, sides] = self._area(first)
        if narrow[1]:
            tiles[wall + 1, sides] = self._area(second)

    def _furnish(self, room: Room) -> None:
        """Gives a hall a pool, a platform, pillars or a light above, with room to walk around it."""
        look, region = self._look(room), self._plan.regions[room.region]
        bottom, left = room.row * PITCH + 1 + MARGIN, room.column * PITCH + 1 + MARGIN
        top, right = bottom + room.rows * PITCH - 1 - 2 * MARGIN, left + room.columns * PITCH - 1 - 2 * MARGIN
        inner = self.tiles[bottom:top, left:right]
        kind = pick(self._rng, ("pool", "dais", "pillars", "light", "pillars", "plain"))
        if kind in ("pool", "dais") and not self._recipe.heights:
            kind = "pillars"
        if kind == "pool":
            inner[:] = self._area(replace(look, floor=look.floor - 16, floor_flat=self._liquid))
        elif kind == "dais":
            inner[:] = self._area(replace(look, floor=look.floor + 16, floor_flat=region.ceiling))
            if self._rng.random() < 0.5:  # a thick pillar on top
                self._pillar(region, (bottom + top) // 2, (left + right) // 2)
        elif kind == "pillars":
            for row in (bottom, top - 1):
                for column in (left, right - 1):
                    self._pillar(region, row, column)
        elif kind == "light" and not region.outdoor:
            flat = SKY_FLAT if self._recipe.sky and self._rng.random() < 0.5 else pick(self._rng, LAMPS)
            rise = 16 if self._recipe.heights else 0
            bright = min(255, look.light + 40)
            inner[:] = self._area(replace(look, ceiling=look.ceiling + rise, ceiling_flat=flat, light=bright))
        self._seen.add(kind)

    def _pillar(self, region: Region, row: int, column: int) -> None:
        self.tiles[row, column] = -1
        self.blocks[row, column] = region.trim

    def _hang_panels(self) -> None:
        """One panel in most cells that have a free wall, each as seldom as possible."""
        used: dict[str, int] = {}
        cells = [cell for room in self._plan.rooms for cell in room.cells()]
        for index in self._rng.permutation(len(cells)):
            if self._rng.random() < 0.25:
                continue
            panels = list(self._plan.region(cells[index]).theme.panels)
            self._rng.shuffle(panels)
            texture, width = min(panels, key=lambda panel: used.get(panel[0], 0))
            sides = [s for s in range(4) if (spots := self._wall(cells[index], s, width // TILE)) is not None]
            if not sides:
                continue
            used[texture] = used.get(texture, 0) + 1
            side = pick(self._rng, sides)
            spots = self._wall(cells[index], side, width // TILE)
            assert spots is not None
            self.panels |= {(*spot, side): Panel(texture, len(self.panels)) for spot in spots}

    def _wall(self, cell: Cell, side: int, width: int) -> list[tuple[int, int]] | None:
        """The open tiles before the middle of a cell's wall, when that is closed and straight."""
        down, along = SIDES[side], SIDES[(side + 1) % 4]
        middle = cell[0] * PITCH + 3 + (down[0] > 0), cell[1] * PITCH + 3 + (down[1] > 0)
        spots = []
        for step in range(-(width // 2) + 1, width // 2 + 1):
            row, column = middle[0] + abs(along[0]) * step, middle[1] + abs(along[1]) * step
            for _ in range(OPEN):
                if self.tiles[row, column] < 0:
                    break
                row, column = row + down[0], column + down[1]
            else:
                return None
            if (row, column) in self.blocks:
                return None
            spots.append((row - down[0], column - down[1]))
        depth = {row if down[0] else column for row, column in spots}
        looks = {self.tiles[spot] for spot in spots}
        return spots if len(depth) == 1 and len(looks) == 1 and min(looks) >= 0 else None

    def _place_things(self) -> None:
        """Decorations in corners, where nobody walks."""
        for room in self._plan.rooms:
            region = self._plan.regions[room.region]
            kinds = region.theme.things + region.theme.flames * self._recipe.moving
            choice = pick(self._rng, kinds)
            corners = self._corners(room)
            count = min(len(corners), int(self._rng.integers(0, 3)) + room.is_hall)
            for index in self._rng.permutation(len(corners))[:count]:
                row, column = corners[index]
                self.things.append(Thing(choice, column * TILE + TILE // 2, row * TILE + TILE // 2))

    def _corners(self, room: Room) -> list[tuple[int, int]]:
        """A hall's and a wide cell's corner tiles between two walls; a narrow cell has no room for them."""
        if self._is_narrow((room.row, room.column)):
            return []
        rows = (room.row * PITCH + 1, (room.row + room.rows) * PITCH - 1)
        columns = (room.column * PITCH + 1, (room.column + room.columns) * PITCH - 1)
        return [
            (row, column)
            for row, beyond in zip(rows, (rows[0] - 1, rows[1] + 1), strict=True)
            for column, beside in zip(columns, (columns[0] - 1, columns[1] + 1), strict=True)
            if self.tiles[beyond, column] < 0 and self.tiles[row, beside] < 0
        ]


def _arch(a: Area, b: Area) -> Area:
    floor = max(a.floor, b.floor)
    roof = next((look.ceiling_flat for look in (a, b) if look.ceiling_flat != SKY_FLAT), a.floor_flat)
    light = (a.light + b.light) // 2
    return Area(floor, floor + 96, light, a.trim, b.trim, a.floor_flat, roof)
