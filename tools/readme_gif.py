"""Draws the real game beside the dream, moving:
python -m tools.readme_gif DATA OUT [EPISODE START [WORLD [TICKS]]].

Both start from the same 32 held-out frames and get the same actions; every second tick is shown, at the
speed of the game.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from tools.readme_picture import real_and_dream
from world_model.types import FPS

EVERY = 2
GAP = 4
COLOURS = 96


def main(data: Path, out: Path, episode: int, start: int, world: str, ticks: int) -> None:
    shown = []
    for tick, real, dreamed in real_and_dream(data, episode, start, world, ticks):
        if tick % EVERY == 0:
            between = np.full((dreamed.shape[0], GAP, 3), 255, np.uint8)
            shown.append(np.concatenate([real, between, dreamed], 1))
    pictures = [Image.fromarray(p).quantize(COLOURS, dither=Image.Dither.NONE) for p in shown]
    duration = round(1000 * EVERY / FPS)
    pictures[0].save(out, save_all=True, append_images=pictures[1:], duration=duration, loop=0, optimize=True)


if __name__ == "__main__":
    episode, start = (int(a) for a in sys.argv[3:5] or ("0", "200"))
    world, ticks = (sys.argv[5:6] or ["arena"])[0], int((sys.argv[6:7] or ["150"])[0])
    main(Path(sys.argv[1]), Path(sys.argv[2]), episode, start, world, ticks)
