"""Pictures of an evaluation: strips of real over dream, and one sheet of all end frames."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from world_model.evaluation.protocol import Clip, Dreamer, dream
from world_model.training.pictures import save_rows
from world_model.types import ReverieError

STRIP_TICKS = (1, 4, 8, 16, 32, 64, 128, 250)


def pick(scores: Sequence[float]) -> dict[str, int]:
    """Which clips are shown: best, median and worst by score, ties by order."""
    order = np.argsort(np.asarray(scores), kind="stable")
    return {"best": int(order[-1]), "median": int(order[len(order) // 2]), "worst": int(order[0])}


def strip(path: Path, dreamer: Dreamer, clip: Clip) -> None:
    """Writes a PNG: real above, dream below, at ticks 1 to 250 as far as the clip goes, half size."""
    ticks = [k for k in STRIP_TICKS if k <= clip.ticks]
    frames = {k: images[0].copy() for k, images in enumerate(dream(dreamer, [clip])) if k in ticks}
    save_rows(path, [[clip.real(k) for k in ticks], [frames[k] for k in ticks]], shrink=2)


def contact_sheet(path: Path, images: NDArray[np.uint8], columns: int = 10, shrink: int = 2) -> None:
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


def have_pillow() -> bool:
    """Whether JPEG can be written."""
    return importlib.util.find_spec("PIL") is not None


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as err:
        raise ReverieError('Pillow is not installed; run pip install "reverie[eval]"') from err
    return Image
