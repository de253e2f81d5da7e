"""Draws walks back along what was seen, real over dream: memory_picture.py WORLD OUT [SOURCE [TICKS]].

The way out, TICKS ticks of it (400), is shown as real frames; then both get the mirrored actions, and the
dream sees nothing more. Two mazes of the test split, one with textures that training combined and one with
others.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from world_model.data.sources import make_source
from world_model.evaluation.protocol import dream
from world_model.evaluation.walks import remembering, there_and_back
from world_model.world import batch_dream

WALKS = 2
SHOWN = (8, 32, 64, 128, 200, 300)
LABEL = 18


def main(world: str, out: Path, source: str, ticks: int) -> None:
    game = make_source(source, sound=False)
    try:
        clips = remembering(there_and_back(game, WALKS, ticks), game.phases)
    finally:
        game.close()
    shown = [k for k in SHOWN if k <= ticks]
    pictures = {
        k: f.copy() for k, f in enumerate(dream(batch_dream(world), clips, painted=shown)) if k in shown
    }
    height, width = clips[0].real(0).shape[:2]
    sheet = Image.new("RGB", (width * len(shown), LABEL + 2 * height * len(clips)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, k in enumerate(shown):
        draw.text((i * width + 6, 3), f"{k} ticks back, seen some {2 * k + 10} ago", fill="black")
        for b, clip in enumerate(clips):
            pair = np.concatenate([clip.real(k), pictures[k][b]])
            sheet.paste(Image.fromarray(pair), (i * width, LABEL + 2 * height * b))
    sheet.save(out, quality=85)


if __name__ == "__main__":
    rest = sys.argv[3:] + ["mazes_small", "400"][len(sys.argv) - 3 :]
    main(sys.argv[1], Path(sys.argv[2]), rest[0], int(rest[1]))
