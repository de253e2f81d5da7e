"""How well the small things of a picture show: PSNR within the boxes of monsters, items and numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from world_model.evaluation import events
from world_model.evaluation.metrics import psnr
from world_model.evaluation.protocol import Clip, Dreamer
from world_model.evaluation.scenery import Scenery, headers_of
from world_model.evaluation.stats import mean_interval
from world_model.evaluation.tables import interval
from world_model.evaluation.windows import HeldOut

SPRITE_TICKS = (0, 1, 4, 8)
EVERY = 4
"""Of a window's context, every so many frames are decoded again."""
TARGET_GAP = 3.0
"""Decibels by which things in the picture may be worse than the whole of it."""
PARTS = ("sprites", "living", "items", "bar", "picture")
"""All labelled things, the living and the items among them, status bar, whole picture."""

Pair = tuple[float, float]
"""PSNR within the boxes, and of the whole of the same pictures; NaN where there is no such box."""


class Boxes:
    """PSNR by part of the picture, tick and window, gathered while windows are dreamed."""

    def __init__(self, scenery: Scenery) -> None:
        self._scenery = scenery
        self._found: dict[str, dict[int, list[Pair]]] = {part: {} for part in PARTS}

    def add(
        self, k: int, images: NDArray[np.uint8], real: NDArray[np.uint8], rows: NDArray[np.int16], kinds: Any
    ) -> None:
        """Pictures (N, H, W, 3) of one window that count together as tick `k`, with their labels (N, K, 5)
        and the header's names of the kinds."""
        for part, wanted in (("living", self._scenery.living), ("items", self._scenery.items)):
            own = frozenset(i for i, name in enumerate(kinds, 1) if name in wanted)
            self._put(part, k, events.label_psnrs(images, real, rows, own))
        self._put("sprites", k, events.label_psnrs(images, real, rows))
        whole = events.box_psnr(_wide(images), _wide(real), [(0, 0, *_wide(real).shape[1::-1])])
        bar = events.crop(images, self._scenery.bar), events.crop(real, self._scenery.bar)
        self._put("bar", k, (psnr(_wide(bar[0]), _wide(bar[1])), whole))
        self._put("picture", k, (whole, whole))

    def _put(self, part: str, k: int, pair: Pair) -> None:
        self._found[part].setdefault(k, []).append(pair)

    def means(self, names: list[str]) -> dict[str, Any]:
        """By part and tick: `psnr` over the windows that have such a box, and `gap`, how much of the whole of
        the same pictures it falls short by. Nothing of ticks where no window has one."""
        return {part: _means(ticks, names) for part, ticks in self._found.items()}

    def per_clip(self) -> dict[str, dict[str, list[float | None]]]:
        """PSNR within the boxes by part, tick and window; None where a window has no such box."""
        return {
            part: {str(k): [None if np.isnan(v) else round(v, 4) for v, _ in pairs] for k, pairs in t.items()}
            for part, t in self._found.items()
        }


def ceiling(dreamer: Dreamer, data: HeldOut, clips: Sequence[Clip], scenery: Scenery) -> dict[str, Any]:
    """What the decoder makes of real frames, by part as `Boxes.means` has it; {} for a dreamer without."""
    make = getattr(dreamer, "reconstruct", None)
    if make is None:
        return {}
    headers, boxes = headers_of(data), Boxes(scenery)
    for clip in clips:
        assert clip.labels is not None, "scenery_of makes sure of labels"
        obs = np.array(clip.frames[: clip.context][::-EVERY])
        kinds = headers[clip.episode].get("labels", [])
        boxes.add(0, make(obs[None])[0], obs, np.asarray(clip.labels[: clip.context][::-EVERY]), kinds)
    means = boxes.means([c.episode for c in clips])
    return {part: ticks["0"] for part, ticks in means.items() if ticks}


def sprite_row(result: dict[str, Any]) -> list[tuple[str, str, str, bool | None]]:
    """Figure, value, target and whether it is met, for the table of targets; nothing where not measured."""
    gap = result.get("sprites", {}).get("sprites", {}).get("gap")
    if gap is None:
        return []
    name = "decoded monsters and things, below the whole picture"
    return [(name, interval(gap, " dB"), f"<= {TARGET_GAP:g} dB", gap["mean"] <= TARGET_GAP)]


def _means(ticks: dict[int, list[Pair]], names: list[str]) -> dict[str, Any]:
    found = {}
    for k, pairs in ticks.items():
        kept = [(*pair, n) for pair, n in zip(pairs, names, strict=True) if not np.isnan(pair[0])]
        if kept:
            own, whole, of = zip(*kept, strict=True)
            gap = mean_interval(np.subtract(whole, own), of)
            found[str(k)] = {"psnr": mean_interval(own, of), "gap": gap}
    return found


def _wide(pictures: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(N, H, W, 3) as one picture: the squares of all go into one mean."""
    return pictures.reshape(-1, *pictures.shape[2:])
