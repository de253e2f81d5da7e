"""Draws the real game beside the dream, moving: readme_gif.py DATA OUT [EPISODE START [WORLD [TICKS]]].

Both start from the same 32 held-out frames and get the same actions; every second tick is shown, at the
speed of the game.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from world_model.data.episodes import list_episodes, read_episode
from world_model.types import FPS
from world_model.world import batch_dream

CONTEXT = 32
EVERY = 2
GAP = 4
COLOURS = 96


def main(data: Path, out: Path, episode: int, start: int, world: str, ticks: int) -> None:
    recorded = read_episode(list_episodes(data, "val")[episode])
    dreamer = batch_dream(world)
    frames = np.array(recorded.frames[start : start + CONTEXT + ticks])
    actions = np.array(recorded.actions[start:], np.int64)[None]
    dreamer.reset(
        frames[None, :CONTEXT], actions[:, : CONTEXT - 1], recorded.phases[start : start + 1].astype(int)
    )
    shown = []
    for tick in range(1, ticks + 1):
        dreamed = dreamer.step(actions[:, CONTEXT + tick - 2])[0]
        if tick % EVERY == 0:
            between = np.full((dreamed.shape[0], GAP, 3), 255, np.uint8)
            shown.append(np.concatenate([frames[CONTEXT - 1 + tick], between, dreamed], 1))
    pictures = [Image.fromarray(p).quantize(COLOURS, dither=Image.Dither.NONE) for p in shown]
    duration = round(1000 * EVERY / FPS)
    pictures[0].save(out, save_all=True, append_images=pictures[1:], duration=duration, loop=0, optimize=True)


if __name__ == "__main__":
    episode, start = (int(a) for a in sys.argv[3:5] or ("0", "200"))
    world, ticks = (sys.argv[5:6] or ["arena"])[0], int((sys.argv[6:7] or ["150"])[0])
    main(Path(sys.argv[1]), Path(sys.argv[2]), episode, start, world, ticks)
