"""Draws a strip of the real game over the dream: readme_picture.py DATA OUT [EPISODE START [WORLD]].

Both start from the same 32 held-out frames and get the same actions.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from world_model.data.episodes import list_episodes, read_episode
from world_model.world import batch_dream

CONTEXT = 32
TICKS = (1, 8, 32, 64, 128, 250)
LABEL = 18

Picture = NDArray[np.uint8]


def real_and_dream(
    data: Path, episode: int, start: int, world: str, ticks: int
) -> Iterator[tuple[int, Picture, Picture]]:
    """(tick, real picture, dreamed picture) for every tick from 1 on, after CONTEXT real frames."""
    recorded = read_episode(list_episodes(data, "val")[episode])
    dreamer = batch_dream(world)
    frames = np.array(recorded.frames[start : start + CONTEXT + ticks])
    actions = np.array(recorded.actions[start:], np.int64)[None]
    dreamer.reset(
        frames[None, :CONTEXT], actions[:, : CONTEXT - 1], recorded.phases[start : start + 1].astype(int)
    )
    for tick in range(1, ticks + 1):
        yield tick, frames[CONTEXT - 1 + tick], dreamer.step(actions[:, CONTEXT + tick - 2])[0]


def main(data: Path, out: Path, episode: int, start: int, world: str) -> None:
    told = real_and_dream(data, episode, start, world, max(TICKS))
    pairs = [np.concatenate([real, dreamed]) for tick, real, dreamed in told if tick in TICKS]
    height, width = pairs[0].shape[:2]
    sheet = Image.new("RGB", (width * len(pairs), height + LABEL), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (tick, pair) in enumerate(zip(TICKS, pairs, strict=True)):
        draw.text((i * width + 6, 3), f"tick {tick}  ({tick / 25:.1f} s)", fill="black")
        sheet.paste(Image.fromarray(pair), (i * width, LABEL))
    sheet.save(out, quality=88)


if __name__ == "__main__":
    episode, start = (int(a) for a in sys.argv[3:5] or ("0", "200"))
    main(Path(sys.argv[1]), Path(sys.argv[2]), episode, start, (sys.argv[5:] or ["rooms"])[0])
