"""Draws what a dream makes up around a player who turns twice on the spot, and says how alike both rounds
are: imagined_picture.py WORLD OUT DATA.

WORLD recalls, DATA is of its source. Each of two dreams is shown the first 32 frames of a held-out episode,
and then turns to the left. The first row is the game's last frame and the first round, the second row the
second.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from world_model.data.dataset import load_split
from world_model.evaluation.metrics import psnr
from world_model.types import Image
from world_model.world import World, load_world

DREAMS, CONTEXT = 2, 32
SHOWN = 6
"""Pictures of a round."""
LONGEST = 400
"""Ticks for two rounds, of a player who may not turn at all."""


def rounds(world: World, frames: Image, actions: NDArray[np.int64]) -> list[list[Image]]:
    """The pictures of two rounds at the same headings."""
    left = [a.name for a in world.actions].index("left")
    world.reset(context=(frames, actions))
    start = float(world.snapshot().dream.place.pose[0, 2])
    headings: list[float] = []
    pictures: list[Image] = []
    while len(pictures) < LONGEST and (not headings or headings[-1] < 4 * math.pi):
        pictures.append(world.step(left).image)
        headings.append(float(world.snapshot().dream.place.pose[0, 2]) - start)
    wanted = [2 * math.pi * k / SHOWN for k in range(1, 2 * SHOWN + 1)]
    seen = [pictures[int(np.abs(np.array(headings) - w).argmin())] for w in wanted]
    return [seen[:SHOWN], seen[SHOWN:]]


def main(folder: str, out: Path, data: Path) -> None:
    world = load_world(folder)
    rows, alike = [], []
    for episode in load_split(data, "val")[:DREAMS]:
        frames = np.array(episode.frames[:CONTEXT])
        first, second = rounds(world, frames, np.array(episode.actions[: CONTEXT - 1], np.int64))
        alike += [psnr(a, b) for a, b in zip(first[1:-2], second[1:-2], strict=True)]
        blank = np.full_like(frames[-1], 255)
        rows += [np.concatenate([frames[-1], *first], 1), np.concatenate([blank, *second], 1)]
    PIL.Image.fromarray(np.concatenate(rows)).save(out, quality=85)
    print(f"the same view a round later: {np.mean(alike):.1f} dB")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
