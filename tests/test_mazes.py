"""Generated maps: the same for a seed, whole, walkable, told in words, and split for good."""

from __future__ import annotations

import re
from collections import deque
from pathlib import Path

import numpy as np
import pytest

from world_model.data.collect import CollectConfig, _counts
from world_model.data.episodes import SPLITS
from world_model.data.mazes.build import TILE
from world_model.data.mazes.layout import Layout, is_held_out, make_layout
from world_model.data.mazes.plan import STEP, Variety, make_plan
from world_model.data.mazes.themes import SKY_FLAT
from world_model.data.mazes.udmf import textmap
from world_model.data.mazes.wad import pack_wad

SEEDS = range(40)
varieties = pytest.mark.parametrize("variety", list(Variety))


def reached(layout: Layout) -> set[tuple[int, int]]:
    """Tiles that a player walks to from the start, up steps of the height that a player climbs."""
    x, y, _ = layout.start
    first = (y // TILE, x // TILE)
    seen, queue = {first}, deque([first])
    while queue:
        row, column = queue.popleft()
        here = layout.areas[layout.tiles[row, column]]
        for to in ((row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)):
            tile = int(layout.tiles[to])
            if tile < 0 or to in seen or abs(layout.areas[tile].floor - here.floor) > STEP:
                continue
            if min(layout.areas[tile].ceiling, here.ceiling) - max(layout.areas[tile].floor, here.floor) < 56:
                continue
            seen.add(to)
            queue.append(to)
    return seen


@varieties
def test_a_seed_is_a_map_and_another_seed_another(variety: Variety) -> None:
    texts = [textmap(make_layout(seed, variety)) for seed in (3, 3, 4)]
    assert texts[0] == texts[1] != texts[2]


@varieties
def test_all_of_a_map_can_be_walked_to(variety: Variety) -> None:
    for seed in SEEDS:
        layout = make_layout(seed, variety)
        assert layout.tiles[0].max() < 0 and layout.tiles[:, 0].max() < 0, "the outer wall is closed"
        open_tiles = {(int(r), int(c)) for r, c in np.argwhere(layout.tiles >= 0)} - set(layout.blocks)
        assert len(reached(layout) & open_tiles) >= 0.97 * len(open_tiles), seed


def test_maps_have_loops_and_rooms_of_many_sizes() -> None:
    sizes = {int((make_layout(seed).tiles >= 0).sum()) for seed in SEEDS}
    assert len(sizes) > len(SEEDS) // 2


def test_full_maps_differ_in_height_light_sky_and_theme() -> None:
    layouts = [make_layout(seed) for seed in SEEDS]
    areas = [area for layout in layouts for area in layout.areas]
    assert len({a.floor for a in areas}) > 2 and len({a.ceiling for a in areas}) > 2
    assert len({a.light for a in areas}) > 2
    assert 0 < sum(a.ceiling_flat == SKY_FLAT for a in areas) < len(areas)
    assert len({theme for layout in layouts for theme in layout.themes}) >= 8


def test_small_maps_are_flat_and_roofed() -> None:
    for seed in SEEDS:
        areas = make_layout(seed, Variety.SMALL).areas
        assert {a.floor for a in areas} == {0}
        assert SKY_FLAT not in {a.ceiling_flat for a in areas}


@varieties
def test_a_map_is_told_in_one_sentence_that_names_its_themes(variety: Variety) -> None:
    told = set()
    for seed in SEEDS:
        layout = make_layout(seed, variety)
        assert re.fullmatch(r"an? [a-z ,-]+", layout.description), layout.description
        assert "maze" in layout.description
        told.add(layout.description)
    assert len(told) > len(SEEDS) // 3


def test_regions_of_training_never_have_what_is_held_out() -> None:
    test = range(SPLITS["test"], SPLITS["test"] + 60)
    assert all(is_held_out(seed) == (seed % 2 == 1) for seed in test)
    assert not any(is_held_out(seed) for seed in [*SEEDS, SPLITS["val"] + 1])
    pairs = [
        {
            (region.theme.name, region.wall, region.floor)
            for seed in range(100)
            for region in make_plan(np.random.default_rng(seed), Variety.FULL.value, 160, unseen).regions
        }
        for unseen in (False, True)
    ]
    assert pairs[0] and pairs[1] and not pairs[0] & pairs[1]


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        make_layout(-1)


def test_a_wad_holds_the_map() -> None:
    wad = pack_wad(textmap(make_layout(0)))
    assert wad[:4] == b"PWAD" and b"TEXTMAP" in wad and b"ENDMAP" in wad


def test_the_game_walks_through_it_and_the_same_seed_looks_the_same() -> None:
    pytest.importorskip("vizdoom")
    from world_model.data.mazes.source import mazes_small

    source = mazes_small()
    try:
        runs = []
        for _ in range(2):
            first = source.reset(5)
            runs.append([first, *(source.step(1) for _ in range(8))])
        assert source.facts["description"] == make_layout(5, Variety.SMALL).description
    finally:
        source.close()
    for a, b in zip(*runs, strict=True):
        np.testing.assert_array_equal(a.image, b.image)
        assert a.pose is not None and b.pose is not None
        np.testing.assert_array_equal(a.pose, b.pose)
    x, y, _ = make_layout(5, Variety.SMALL).start
    pose = runs[0][0].pose
    assert pose is not None and abs(pose[0] - x) < 1 and abs(pose[1] - y) < 1


def test_maps_that_a_world_is_shown_with_are_kept_apart(tmp_path: Path) -> None:
    counts = _counts(CollectConfig("mazes_small", frames=12_000, out=tmp_path, episode_ticks=1200))
    assert counts == {"train": 10, "val": 1, "test": 1}
    assert "test" not in _counts(CollectConfig("rooms", frames=12_000, out=tmp_path, episode_ticks=1200))
