"""The real game through the player's loop, and the real game beside the dream of it.

Both look like a world to `Session`: `reset`, `step`, `actions`, `info`. A real game has no states, so
there is no rewinding and no slot.
"""

from __future__ import annotations

import math
import time
from collections import deque
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from game.players import Wanderer
from world_model.data.sources import Observation, Source
from world_model.types import FPS, DataError, Frame, FrameInfo, Image, WorldInfo

CONTEXT = 32
"""Transitions of the real game that the dream sees before it begins."""

PLOT_SECONDS = 10
PLOT_DB = (10.0, 40.0)
PLOT_CAPTION = "PSNR over ten seconds, 10 to 40 dB: the dream green, copy-seed red"
CAPTIONS = (
    (0.0, 0.0, "the real game"),
    (0.5, 0.0, "the dream"),
    (0.0, 0.5, "difference"),
    (0.5, 0.5, PLOT_CAPTION),
)
DREAM_COLOR, COPY_COLOR, GRID_COLOR = (126, 211, 150), (242, 120, 110), (44, 48, 60)


class SourceWorld:
    """A real game as something that can be played: no model, no memory, no states."""

    def __init__(self, source: Source) -> None:
        self.source, self.actions = source, source.actions
        image = source.reset(0).image
        height, width = image.shape[:2]
        self.info = WorldInfo(source.name, width, height, FPS, 0, (), source.licence, {}, {}, "", "source")
        self._seed = self._tick = 0

    def reset(self, seed: int = 0, scene: str | None = None) -> Frame:
        """An episode that `seed` chooses."""
        self._seed, self._tick = seed, 0
        return Frame(self.source.reset(seed).image, None, FrameInfo(0))

    def step(self, action: int) -> Frame:
        """Goes on; where the game is over, it begins again with the next seed."""
        began = time.perf_counter()
        obs = self.source.step(action)
        if obs.terminated or obs.truncated:
            self._seed += 1
            obs = self.source.reset(self._seed)
        self._tick += 1
        return Frame(obs.image, obs.sound, FrameInfo(self._tick, _total(began)))


class TwinWorld:
    """Real game and dream with the same actions: real, dream, difference and a plot in one picture.

    Raises DataError where the game's actions or pictures are not those of the world.
    """

    captions = CAPTIONS

    def __init__(self, dream: Any, source: Source) -> None:
        names = [action.name for action in dream.actions]
        if [action.name for action in source.actions] != names:
            raise DataError(f"{source.name} is not the game that {dream.info.name} dreams of: other actions")
        self.dream, self.source, self.actions = dream, source, dream.actions
        width, height = 2 * dream.info.width, 2 * dream.info.height
        self.info = replace(dream.info, width=width, height=height)
        # Long enough that a context can begin where the game's clock pattern does.
        self._past: deque[Image] = deque(maxlen=CONTEXT + source.phases + 1)
        self._acts: deque[int] = deque(maxlen=CONTEXT + source.phases)
        self._seed = self._ticks = 0
        self._drift: deque[tuple[float, float]] = deque(maxlen=PLOT_SECONDS * FPS)
        self._held: Image

    @property
    def memory(self) -> Any:
        return self.dream.memory

    @property
    def status(self) -> str:
        """PSNR of the dream, and of holding the picture it began with, over the last second."""
        if not self._drift:
            return "PSNR -"
        dream, held = np.mean(list(self._drift)[-FPS:], axis=0)
        return f"PSNR {dream:.1f} dB   copy-seed {held:.1f} dB"

    def reset(self, seed: int = 0, scene: str | None = None) -> Frame:
        """The real game begins and walks a little; then the dream begins there."""
        self._seed, self._ticks = seed, 0
        self._past.clear()
        self._acts.clear()
        obs = self.source.reset(seed)
        self._past.append(obs.image)
        walker = Wanderer(self.actions, seed)
        for _ in range(CONTEXT):
            obs = self._real(walker.act(0, obs.image))
        return self.reseed()

    def reseed(self) -> Frame:
        """The dream begins again from what the real game has just shown."""
        first = self._ticks - len(self._acts)
        skip = -first % self.source.phases
        obs, act = list(self._past)[skip:], list(self._acts)[skip:]
        frame = self.dream.reset(seed=self._seed, context=(np.stack(obs), np.array(act, np.int64)))
        self._held = self._past[-1]
        self._drift.clear()
        return self._show(frame)

    def step(self, action: int) -> Frame:
        """One tick of both."""
        began = time.perf_counter()
        obs = self._real(action)
        if obs.terminated or obs.truncated:
            return self.reset(self._seed + 1)
        real = time.perf_counter()
        frame = self.dream.step(action)
        self._drift.append((psnr(obs.image, frame.image), psnr(obs.image, self._held)))
        ms = frame.info.ms | {"real": 1e3 * (real - began)} | _total(began)
        return self._show(replace(frame, info=replace(frame.info, ms=ms)))

    def _real(self, action: int) -> Observation:
        obs = self.source.step(action)
        self._past.append(obs.image)
        self._acts.append(action)
        self._ticks += 1
        return obs

    def _show(self, frame: Frame) -> Frame:
        real, dream = self._past[-1], frame.image
        difference = np.abs(real.astype(np.int16) - dream).astype(np.uint8)
        height, width = real.shape[:2]
        top = np.concatenate((real, dream), 1)
        bottom = np.concatenate((difference, plot(list(self._drift), width, height)), 1)
        return replace(frame, image=np.ascontiguousarray(np.concatenate((top, bottom), 0)))


def psnr(one: Image, other: Image) -> float:
    """Decibels between two pictures, at most 60."""
    error = float(np.mean((one.astype(np.float32) - other) ** 2))
    return min(10 * math.log10(255**2 / error), 60.0) if error > 0 else 60.0


def plot(drift: list[tuple[float, float]], width: int, height: int) -> Image:
    """PSNR over the last seconds: the dream in green, the held picture in red; a line for every 10 dB."""
    picture = np.full((height, width, 3), (14, 16, 22), np.uint8)
    low, high = PLOT_DB
    for level in np.arange(low, high + 1, 10):
        picture[_row(np.array([level]), height)[0]] = GRID_COLOR
    if drift:
        values: NDArray[np.float64] = np.array(drift)
        columns = np.linspace(0, width - 1, PLOT_SECONDS * FPS).astype(int)[-len(drift) :]
        for series, color in ((values[:, 1], COPY_COLOR), (values[:, 0], DREAM_COLOR)):
            rows = _row(series, height)
            before = np.concatenate((rows[:1], rows[:-1]))
            for column, low_row, high_row in zip(
                columns, np.minimum(rows, before), np.maximum(rows, before), strict=True
            ):
                picture[low_row : high_row + 2, column] = color  # joined to the value before it
    return picture


def _row(db: NDArray[np.float64], height: int) -> NDArray[np.int64]:
    low, high = PLOT_DB
    share = (np.clip(db, low, high) - low) / (high - low)
    return np.round((height - 1) - share * (height - 9) - 4).astype(np.int64)


def _total(began: float) -> dict[str, float]:
    return {"total": 1e3 * (time.perf_counter() - began)}
