"""Pictures of an evaluation: strips and moving pictures of real beside dream, and sheets of many frames.

What is shown is the very dream that was scored: pictures are kept while a rollout is measured.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from world_model.evaluation.protocol import Clip, Images
from world_model.training.pictures import save_rows
from world_model.types import TICK_MS, ReverieError

STRIP_TICKS = (1, 4, 8, 16, 32, 64, 128, 250)
FILM_TICKS = 128
"""Ticks of a moving picture: five seconds."""
SHRINK = 2
GAP = 4
"""Pixels between real and dream."""
COLOURS = 128

Picture = NDArray[np.uint8]


class Film:
    """A `rollout.Watch` that keeps the dreamed pictures of all clips, every second pixel each way.

    Holds 64 clips of 256 x 160 pixels in 250 MB.
    """

    ticks = frozenset(range(FILM_TICKS + 1)) | frozenset(STRIP_TICKS)

    def __init__(self) -> None:
        self._kept: dict[int, list[Images]] = {}

    def __call__(self, tick: int, dreamed: Images, real: Images) -> None:
        self._kept.setdefault(tick, []).append(dreamed[:, ::SHRINK, ::SHRINK].copy())

    def dreamed(self, tick: int) -> Images:
        """The pictures (N, H / 2, W / 2, 3) of all clips at a tick, in the order of the clips."""
        return np.concatenate(self._kept[tick])

    def shot(self, index: int) -> dict[int, Picture]:
        """One clip's pictures by tick."""
        return {tick: self.dreamed(tick)[index] for tick in sorted(self._kept)}


def pick(scores: Sequence[float]) -> dict[str, int]:
    """Which clips are shown: best, median and worst by score, ties by order."""
    order = np.argsort(np.asarray(scores), kind="stable")
    return {"best": int(order[-1]), "median": int(order[len(order) // 2]), "worst": int(order[0])}


def strip(path: Path, shot: dict[int, Picture], clip: Clip) -> None:
    """Writes a PNG: real above, dream below, at ticks 1 to 250 as far as the clip goes."""
    ticks = [k for k in STRIP_TICKS if k in shot]
    save_rows(path, [[small(clip.real(k)) for k in ticks], [shot[k] for k in ticks]])


def film(path: Path, shot: dict[int, Picture], clip: Clip) -> None:
    """Writes a GIF at 25 frames a second, real left, dream right, tick 0 to 128 as far as the clip goes.

    Raises ReverieError with the remedy when Pillow is not installed.
    """
    image = _pillow()
    pages = []
    for k in range(FILM_TICKS + 1):
        if k in shot:
            bar = np.full((len(shot[k]), GAP, 3), 255, np.uint8)
            both = np.concatenate([small(clip.real(k)), bar, shot[k]], 1)
            pages.append(image.fromarray(both).quantize(COLOURS, dither=image.Dither.NONE))
    pages[0].save(path, save_all=True, append_images=pages[1:], duration=round(TICK_MS), loop=0)


def windows_sheet(path: Path, film: Film, clips: Sequence[Clip], tick: int, order: Sequence[int]) -> None:
    """Writes all windows at one tick in the given order, real above dream in each cell."""
    dreamed = film.dreamed(tick)
    cells = [_framed(np.concatenate([small(clips[i].real(tick)), dreamed[i]])) for i in order]
    contact_sheet(path, np.stack(cells), columns=8, shrink=1)


def contact_sheet(path: Path, images: NDArray[np.uint8], columns: int = 10, shrink: int = SHRINK) -> None:
    """Writes pictures uint8 (N, H, W, 3) as one sheet, JPEG or PNG by the name's suffix.

    JPEG needs Pillow; raises ReverieError with the remedy when it is not installed.
    """
    height, width = images[0, ::shrink, ::shrink].shape[:2]
    sheet = np.zeros((-(-len(images) // columns) * height, columns * width, 3), np.uint8)
    for i, image in enumerate(images):
        top, left = i // columns * height, i % columns * width
        sheet[top : top + height, left : left + width] = image[::shrink, ::shrink]
    if path.suffix == ".png":
        save_rows(path, [[sheet]])
        return
    _pillow().fromarray(sheet).save(path, quality=85)


def _framed(image: Picture) -> Picture:
    return np.pad(image, ((0, GAP), (0, GAP), (0, 0)), constant_values=255)


def small(image: Picture) -> Picture:
    """Every second pixel each way."""
    return np.ascontiguousarray(image[::SHRINK, ::SHRINK])


def have_pillow() -> bool:
    """Whether JPEG and GIF can be written."""
    return importlib.util.find_spec("PIL") is not None


def sheet_name(stem: str) -> str:
    """A sheet's file name: JPEG with Pillow, PNG without."""
    return f"{stem}.jpg" if have_pillow() else f"{stem}.png"


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as err:
        raise ReverieError('Pillow is not installed; run pip install "reverie[eval]"') from err
    return Image
