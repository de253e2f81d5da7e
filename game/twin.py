"""The real game beside the dream of it: real, dream, difference and a plot of the drift in one picture.

It looks like a world to `Session`. Both halves have states, so it can be rewound, saved, recorded and
replayed: the dream's state is kept, and the real game is played again from its seed (`source_world`). To
begin the dream again from the real game is an action of its own, the last one: so it stands in recordings
and happens again where time is taken back.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from game.players import RESEED, Wanderer
from game.source_world import Mark, SourceWorld, Tape
from world_model.data.sources import Source, make_source
from world_model.types import FPS, Action, DataError, Frame, Image, SourceError

SOUND = "sound"
"""In a recording's first line: false where the real game ran without its sound."""

CONTEXT = 32
"""Transitions of the real game that the dream sees before it begins."""

PLOT_SECONDS = 10
PLOT_DB = (10.0, 40.0)
PLOT_CAPTION = "PSNR over ten seconds, 10 to 40 dB: the dream green, copy-seed red"
CAPTIONS = (
    (0.0, 0.0, "the real game"),
    (0.5, 0.0, "the dream"),
    (0.0, 0.5, "difference, twice as bright"),
    (0.5, 0.5, PLOT_CAPTION),
)
DREAM_COLOR, COPY_COLOR, GRID_COLOR = (126, 211, 150), (242, 120, 110), (44, 48, 60)

Drift = tuple[tuple[float, float], ...]
"""PSNR of the dream and of the picture it began with, tick by tick."""


@dataclass(frozen=True)
class TwinState:
    """A moment of both: the real game's mark, the dream's state, and what the plot is made of."""

    mark: Mark
    dream: Any
    held: Image
    drift: Drift

    @property
    def nbytes(self) -> int:
        return int(self.dream.nbytes) + len(self.mark.acts) + self.held.nbytes + 8 * len(self.drift)

    def hash(self) -> str:
        parts = (self.mark.digest(), self.dream.hash().encode(), repr(self.drift).encode())
        return hashlib.sha256(b"".join(parts) + self.held.tobytes()).hexdigest()


class TwinWorld:
    """Real game and dream with the same actions. Raises DataError where they have other actions."""

    captions = CAPTIONS

    def __init__(self, dream: Any, source: Source) -> None:
        names = [action.name for action in dream.actions]
        if [action.name for action in source.actions] != names:
            raise DataError(f"{source.name} is not the game that {dream.info.name} dreams of: other actions")
        self.dream, self.source, self.tape = dream, source, Tape(source)
        self.reseed_action = len(dream.actions)
        self.actions = (*dream.actions, Action(RESEED))
        self.info = replace(
            dream.info,
            name=f"{dream.info.name}-twin",
            width=2 * dream.info.width,
            height=2 * dream.info.height,
            scenes=(),  # it begins where the real game does
            backend=f"twin-{dream.info.backend}",
        )
        self.origin: dict[str, Any] = {"source": source.name, "dream": dream.info.name}
        """Written into a recording, so that it is known what to replay it with."""
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
        self.tape.begin(seed)
        return self._begin()

    def step(self, action: int) -> Frame:
        """One tick of both; with the last action the dream begins again, and the real game waits.

        Where the real game is over, both begin again.
        """
        began = time.perf_counter()
        if action == self.reseed_action:
            return self._reseed()
        if self.tape.over:
            self.tape.step(action)  # to the first picture of the next game
            return self._begin()
        image = self.tape.step(action).image
        real = time.perf_counter()
        frame = self.dream.step(action)
        self._drift.append((psnr(image, frame.image), psnr(image, self._held)))
        total = 1e3 * (time.perf_counter() - began)
        ms = frame.info.ms | {"real": 1e3 * (real - began), "total": total}
        return self._show(replace(frame, info=replace(frame.info, ms=ms)))

    def snapshot(self) -> TwinState:
        return TwinState(self.tape.mark(), self.dream.snapshot(), self._held, tuple(self._drift))

    def restore(self, state: TwinState) -> None:
        self.tape.go(state.mark)
        self.dream.restore(state.dream)
        self._held = state.held
        self._drift = deque(state.drift, maxlen=self._drift.maxlen)

    def _begin(self) -> Frame:
        """The real game walks a little from where it is, so that the dream has something to go by."""
        walker = Wanderer(self.dream.actions, self.tape.game_seed)
        for _ in range(CONTEXT):
            self.tape.step(walker.act(0, self.tape.now.image))
        return self._reseed()

    def _reseed(self) -> Frame:
        """The dream begins again from what the real game has just shown."""
        first = max(self.tape.at - CONTEXT, self.tape.began)
        first -= (first - self.tape.began) % self.source.phases  # where the game's clock pattern begins
        obs, act = self.tape.stretch(first)
        frame = self.dream.reset(seed=self.tape.game_seed, context=(obs, act))
        self._held = obs[-1]
        self._drift.clear()
        return self._show(frame)

    def _show(self, frame: Frame) -> Frame:
        real, dream = self.tape.now.image, frame.image
        difference = np.minimum(2 * np.abs(real.astype(np.int16) - dream), 255).astype(np.uint8)
        height, width = real.shape[:2]
        top = np.concatenate((real, dream), 1)
        bottom = np.concatenate((difference, plot(list(self._drift), width, height)), 1)
        return replace(frame, image=np.ascontiguousarray(np.concatenate((top, bottom), 0)))


def open_source(name: str, audio: bool = True) -> SourceWorld:
    """The real game as a world, with sound only where it is heard. Raises SourceError with the remedy."""
    world = SourceWorld(_open_game(name, audio))
    world.origin |= {} if audio else {SOUND: False}
    return world


def open_twin(dream: Any, name: str, audio: bool = True) -> TwinWorld:
    """The real game `name` beside a dream of it; see `open_source`. Raises DataError for another game."""
    world = TwinWorld(dream, _open_game(name, audio))
    world.origin |= {} if audio else {SOUND: False}
    return world


def _open_game(name: str, audio: bool) -> Source:
    try:
        return make_source(name, sound=audio)
    except SourceError as err:
        # The source speaks of collecting, which goes on without sound by another word than playing.
        raise SourceError(str(err).replace("--no-sound", "--no-audio")) from err


def open_recorded(header: dict[str, Any], load: Callable[[str], Any], name: str | None = None) -> Any:
    """The world that a recording with this first line is of: a dream, a real game, or both.

    `load` gives the dream of a name; `name` is another than the recorded one. Raises SourceError that
    says what to install, WorldError where there is no such dream, DataError for a broken line.
    """
    source, dream, backend = header.get("source"), header.get("dream"), str(header.get("backend"))
    if backend != "source" and not backend.startswith("twin-"):
        return load(name or str(header["world"]))
    if not isinstance(source, str) or (backend != "source" and not isinstance(dream, str)):
        raise DataError("the recording does not say which real game it is of")
    audio = header.get(SOUND) is not False
    if backend == "source":
        return open_source(source, audio)
    return open_twin(load(name or str(dream)), source, audio)


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
        ticks = PLOT_SECONDS * FPS
        columns = np.arange(width - max(len(drift) * width // ticks, 1), width)
        at = np.linspace(0, len(drift) - 1, len(columns)).round().astype(int)  # every column has a value
        for series, color in ((values[at, 1], COPY_COLOR), (values[at, 0], DREAM_COLOR)):
            rows = _row(series, height)
            before = np.concatenate((rows[:1], rows[:-1]))
            spans = zip(columns, np.minimum(rows, before), np.maximum(rows, before), strict=True)
            for column, low_row, high_row in spans:
                picture[low_row : high_row + 2, column] = color  # joined to the value before it
    return picture


def _row(db: NDArray[np.float64], height: int) -> NDArray[np.int64]:
    low, high = PLOT_DB
    share = (np.clip(db, low, high) - low) / (high - low)
    bottom = height - 2 - height // 8  # below it stands the caption
    return np.round(bottom - share * (bottom - 4)).astype(np.int64)
