"""Draws twenty generated maps, each as a plan and as what a player sees there: maze_gallery.py OUT [SOURCE].

SOURCE is mazes (the default) or mazes_small; the maps are the first twenty of the validation split.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from world_model.data.episodes import SPLITS
from world_model.data.mazes.layout import Layout
from world_model.data.mazes.source import MazeSource, mazes, mazes_small

MAPS, COLUMNS = 20, 4
HEIGHT, LABEL = 160, 42
TURN = 14
"""Ticks of turning between the two views."""


def main(out: Path, source: MazeSource) -> None:
    tiles = [_tile(source, SPLITS["val"] + i) for i in range(MAPS)]
    width, height = tiles[0].size
    sheet = Image.new("RGB", (width * COLUMNS, height * -(-MAPS // COLUMNS)), "white")
    for i, tile in enumerate(tiles):
        sheet.paste(tile, (i % COLUMNS * width, i // COLUMNS * height))
    sheet.save(out, quality=80)


def _tile(source: MazeSource, seed: int) -> Image.Image:
    left = next(i for i, action in enumerate(source.actions) if action.name == "left")
    views = [source.reset(seed).image]
    views += [[source.step(left) for _ in range(TURN)][-1].image]
    assert source.layout is not None
    plan = Image.fromarray(_plan(source.layout)).resize((HEIGHT, HEIGHT), Image.Resampling.NEAREST)
    small = [Image.fromarray(view).resize((HEIGHT * 8 // 10, HEIGHT // 2)) for view in views]
    tile = Image.new("RGB", (HEIGHT + small[0].width + 8, HEIGHT + LABEL + 6), "white")
    tile.paste(plan, (0, 0))
    for i, view in enumerate(small):
        tile.paste(view, (HEIGHT + 2, i * HEIGHT // 2))
    words, lines = source.layout.description.split(), [""]
    for word in words:
        if len(lines[-1]) + len(word) > 46:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    ImageDraw.Draw(tile).text((3, HEIGHT + 2), "\n".join(lines[:3]), fill="black")
    return tile


def _plan(layout: Layout) -> NDArray[np.uint8]:
    """Floors by area, walls dark, pillars black, north up."""
    colours = np.random.default_rng(7).integers(90, 240, (len(layout.areas) + 1, 3)).astype(np.uint8)
    colours[-1] = 40
    picture = colours[layout.tiles]
    for row, column in layout.blocks:
        picture[row, column] = 0
    return np.ascontiguousarray(picture[::-1])


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(Path(sys.argv[1]), mazes_small() if sys.argv[2:] == ["mazes_small"] else mazes())
