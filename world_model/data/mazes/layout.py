"""Seed -> maze: a grid of tiles, what each looks like, landmarks, the start, and a sentence about it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from world_model.data.episodes import SPLITS
from world_model.data.mazes import themes
from world_model.data.mazes.build import Area, Builder, Panel, Thing
from world_model.data.mazes.plan import Plan, Variety, make_plan, pick

VERSION = 1
"""Counts up when a seed no longer gives the same map."""


@dataclass(frozen=True)
class Layout:
    """A map. Rows of tiles go north, columns east; a tile is `build.TILE` map units wide.

    tiles: int16 (rows, columns), index into `areas`, or -1 within a wall. blocks: wall textures of pillars,
    by tile. panels: by open tile and the side of it where the wall is (0 east, 1 north, 2 west, 3 south).
    start: x, y in map units and heading in whole degrees, counter-clockwise from east.
    """

    seed: int
    variety: Variety
    tiles: NDArray[np.int16]
    areas: tuple[Area, ...]
    blocks: dict[tuple[int, int], str]
    panels: dict[tuple[int, int, int], Panel]
    things: tuple[Thing, ...]
    start: tuple[int, int, int]
    sky: str
    themes: tuple[str, ...]
    description: str


def is_held_out(seed: int) -> bool:
    """Whether the seed's map shows only walls with floors that training never combines.

    That is every second seed of the test split. No region of another map has any of these combinations;
    only where regions meet may one's wall stand on the other's floor.
    """
    return seed >= SPLITS["test"] and seed % 2 == 1


def make_layout(seed: int, variety: Variety = Variety.FULL) -> Layout:
    """The map of a seed, always the same one. Raises ValueError for a negative seed."""
    if seed < 0:
        raise ValueError(f"seed {seed} is negative; a map's seed is 0 or more")
    rng = np.random.default_rng([VERSION, seed])
    recipe = variety.value
    light, shade = pick(rng, themes.SHADES)
    liquid = pick(rng, themes.LIQUIDS)
    sky = pick(rng, themes.SKIES)
    plan = make_plan(rng, recipe, light, is_held_out(seed))
    flooded = _flooded(rng, plan) if recipe.moving else None
    builder = Builder(rng, plan, recipe, liquid[0], flooded)
    builder.build()
    names = _themes(plan)
    extras = builder.extras(liquid[1] if flooded is None else None)
    outdoor = any(area.ceiling_flat == themes.SKY_FLAT for area in builder.areas)
    return Layout(
        seed,
        variety,
        builder.tiles,
        tuple(builder.areas),
        builder.blocks,
        builder.panels,
        tuple(builder.things),
        builder.start(),
        sky[0],
        names,
        themes.sentence(
            shade,
            _size(plan),
            list(names[:3]),
            None if flooded is None else liquid[1],
            extras,
            sky[1] if outdoor else None,
        ),
    )


def _flooded(rng: Generator, plan: Plan) -> int | None:
    """A region whose floors are all liquid, in one map of three."""
    return int(rng.integers(len(plan.regions))) if rng.random() < 0.33 else None


def _themes(plan: Plan) -> tuple[str, ...]:
    """The themes that the map shows, the commonest first."""
    cells: Counter[str] = Counter()
    for room in plan.rooms:
        cells[plan.regions[room.region].theme.name] += room.rows * room.columns
    return tuple(name for name, _ in cells.most_common())


def _size(plan: Plan) -> str:
    cells = plan.shape[0] * plan.shape[1]
    return "small" if cells <= 30 else "large" if cells >= 49 else ""
