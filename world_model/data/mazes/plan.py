"""The plan of a maze in cells: which cells are one room, which are joined, and how high each floor lies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from world_model.data.mazes.themes import THEMES, Theme, is_held_out

T = TypeVar("T")
Cell = tuple[int, int]

STEP = 24
"""The highest step in map units that a player walks up."""
ROOMS = ((2, 2), (2, 2), (2, 3), (3, 2), (3, 3), (1, 2), (2, 1))
"""Rows and columns of rooms; all other cells are corridors."""


@dataclass(frozen=True)
class Recipe:
    """How varied maps are. `cells` and `regions` are ranges, both ends included."""

    cells: tuple[int, int]
    regions: tuple[int, int]
    themes: int
    walls: int
    floors: int
    heights: bool
    """Steps, pools, platforms, and ceilings of several heights."""
    sky: bool
    moving: bool
    """Liquids and flames, which change from tic to tic."""


class Variety(Enum):
    """SMALL for models that two cores can train, FULL for all that the generator knows."""

    SMALL = Recipe((5, 5), (2, 3), 3, 3, 3, heights=False, sky=False, moving=False)
    FULL = Recipe((5, 8), (2, 5), len(THEMES), 99, 99, heights=True, sky=True, moving=True)


@dataclass(frozen=True)
class Region:
    """Neighbouring cells that look alike: textures from one theme, one light, with a roof or without."""

    theme: Theme
    wall: str
    floor: str
    ceiling: str
    trim: str
    light: int
    outdoor: bool
    narrow: bool
    """Its corridors are narrower than its cells."""


@dataclass(frozen=True)
class Room:
    """A rectangle of cells with one floor: corridors are rooms of one cell."""

    row: int
    column: int
    rows: int
    columns: int
    region: int
    floor: int
    ceiling: int

    @property
    def is_hall(self) -> bool:
        return self.rows * self.columns > 1

    def cells(self) -> Iterator[Cell]:
        for row in range(self.row, self.row + self.rows):
            yield from ((row, column) for column in range(self.column, self.column + self.columns))


@dataclass(frozen=True)
class Plan:
    """`links` are pairs of neighbouring cells of different rooms between which one can walk."""

    shape: Cell
    regions: tuple[Region, ...]
    rooms: tuple[Room, ...]
    room_of: NDArray[np.int16]
    links: frozenset[tuple[Cell, Cell]]

    def room(self, cell: Cell) -> Room:
        return self.rooms[self.room_of[cell]]

    def region(self, cell: Cell) -> Region:
        return self.regions[self.room(cell).region]


def pick(rng: Generator, items: Sequence[T]) -> T:
    return items[int(rng.integers(len(items)))]


def make_plan(rng: Generator, recipe: Recipe, light: int, unseen: bool) -> Plan:
    """Draws a plan. `unseen` chooses every region's wall and floor from the held-out combinations."""
    low, high = recipe.cells
    shape = (int(rng.integers(low, high + 1)), int(rng.integers(low, high + 1)))
    room_of, corners = _place_rooms(rng, shape)
    links = _link(rng, shape, room_of)
    regions = _draw_regions(rng, recipe, light, unseen)
    seeds = [(rng.uniform(0, shape[0]), rng.uniform(0, shape[1])) for _ in regions]
    floors = _floors(rng, len(corners), [(int(room_of[a]), int(room_of[b])) for a, b in links], recipe)
    rooms = []
    for index, (row, column, rows, columns) in enumerate(corners):
        middle = row + rows / 2, column + columns / 2
        region = int(np.argmin([np.hypot(middle[0] - r, middle[1] - c) for r, c in seeds]))
        height = _height(rng, recipe, regions[region], rows * columns)
        rooms.append(Room(row, column, rows, columns, region, floors[index], floors[index] + height))
    return Plan(shape, regions, tuple(rooms), room_of, links)


def _place_rooms(rng: Generator, shape: Cell) -> tuple[NDArray[np.int16], list[tuple[int, int, int, int]]]:
    room_of = np.full(shape, -1, np.int16)
    corners: list[tuple[int, int, int, int]] = []
    for _ in range(shape[0] * shape[1] // 4):
        rows, columns = pick(rng, ROOMS)
        row = int(rng.integers(shape[0] - rows + 1))
        column = int(rng.integers(shape[1] - columns + 1))
        spot = room_of[row : row + rows, column : column + columns]
        if (spot < 0).all() and (room_of >= 0).sum() + spot.size <= 0.6 * room_of.size:
            spot[:] = len(corners)
            corners.append((row, column, rows, columns))
    for row, column in np.argwhere(room_of < 0):
        room_of[row, column] = len(corners)
        corners.append((int(row), int(column), 1, 1))
    return room_of, corners


def _link(rng: Generator, shape: Cell, room_of: NDArray[np.int16]) -> frozenset[tuple[Cell, Cell]]:
    """A spanning tree over rooms, and further links that close loops."""
    walls = [((r, c), (r, c + 1)) for r in range(shape[0]) for c in range(shape[1] - 1)]
    walls += [((r, c), (r + 1, c)) for r in range(shape[0] - 1) for c in range(shape[1])]
    group = list(range(int(room_of.max()) + 1))

    def root(room: int) -> int:
        while group[room] != room:
            room = group[room]
        return room

    loops = rng.uniform(0.12, 0.3)
    links = set()
    for index in rng.permutation(len(walls)):
        a, b = walls[index]
        if room_of[a] == room_of[b]:
            continue
        first, second = root(int(room_of[a])), root(int(room_of[b]))
        if first != second or rng.random() < loops:
            links.add((a, b))
        group[first] = second
    return frozenset(links)


def _draw_regions(rng: Generator, recipe: Recipe, light: int, unseen: bool) -> tuple[Region, ...]:
    count = int(rng.integers(recipe.regions[0], recipe.regions[1] + 1))
    themes = [THEMES[i] for i in rng.permutation(recipe.themes)][:count]
    if recipe.sky:  # larger maps show a theme in more than one place
        themes = [pick(rng, themes[: max(1, count - 1)]) for _ in range(count)]
    return tuple(_draw_region(rng, recipe, theme, light, unseen) for theme in themes)


def _draw_region(rng: Generator, recipe: Recipe, theme: Theme, light: int, unseen: bool) -> Region:
    pairs = [
        (wall, floor)
        for i, wall in enumerate(theme.walls[: recipe.walls])
        for j, floor in enumerate(theme.floors[: recipe.floors])
        if is_held_out(i, j) == unseen
    ]
    wall, floor = pick(rng, pairs)
    outdoor = recipe.sky and rng.random() < 0.35
    return Region(
        theme,
        wall,
        floor,
        ceiling=pick(rng, theme.ceilings),
        trim=pick(rng, theme.trims),
        light=min(255, light + int(rng.integers(-1, 2)) * 16 + 24 * outdoor),
        outdoor=outdoor,
        narrow=rng.random() < 0.5,
    )


def _floors(rng: Generator, rooms: int, links: list[tuple[int, int]], recipe: Recipe) -> list[int]:
    """Heights of floors: drawn, then lowered until no link has a step that cannot be walked up."""
    if not recipe.heights or rng.random() < 0.15:
        return [0] * rooms
    floors = [int(h) for h in rng.integers(0, 13, rooms) * 8]
    changed = True
    while changed:
        changed = False
        for a, b in [*links, *((b, a) for a, b in links)]:
            if floors[a] > floors[b] + STEP:
                floors[a], changed = floors[b] + STEP, True
    return floors


def _height(rng: Generator, recipe: Recipe, region: Region, cells: int) -> int:
    if not recipe.heights:
        return 128
    if region.outdoor:
        return pick(rng, (128, 128, 160, 192))
    return pick(rng, (144, 160, 192, 224)) if cells > 2 else pick(rng, (128, 128, 144))
