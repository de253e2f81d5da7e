"""A real game that can be played like a world, and taken back like one.

A real game keeps no states. But it is deterministic, so a moment of it is (seed, actions since): going back
means that the game is played again from its seed, out of sight. Pictures near the present moment are kept,
so this happens about twice a minute of rewinding, and once when the player takes another way.
"""

from __future__ import annotations

import hashlib
import time
from array import array
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from world_model.data.sources import Observation, Source, check_action
from world_model.types import FPS, Frame, FrameInfo, Image, WorldInfo

ROOM = 64 << 20
"""Bytes of pictures that are kept around the present moment."""

LEAST = 3 * FPS
"""Observations that are kept whatever they take."""


@dataclass(frozen=True)
class Mark:
    """A moment of a real game: its seed, and the actions since then as array("H") bytes."""

    seed: int
    acts: bytes

    def digest(self) -> bytes:
        return hashlib.sha256(b"%d " % self.seed + self.acts).digest()


class Tape:
    """A source with a past. Where a game is over, the next step begins the game of the next seed.

    Positions count the steps since `begin`. The source itself may stand elsewhere; it is brought to a
    position only when an observation is wanted that is not kept.
    """

    def __init__(self, source: Source, room: int = ROOM) -> None:
        self.source, self._room = source, room
        self.seed, self.at = 0, 0
        self._acts = array("H")
        self._seen: dict[int, Observation] = {}
        self._most = LEAST
        self._overs: list[int] = []
        """Positions of the last pictures of games, in order."""
        self._game_at: int | None = None
        """Where the source itself stands; None where its past is another one."""
        self._game: Observation

    def begin(self, seed: int) -> Observation:
        """A game that `seed` chooses, from its first picture."""
        self.seed, self.at, self._acts, self._game_at = seed, 0, array("H"), None
        self._seen.clear()
        self._overs.clear()
        return self.now

    def step(self, action: int) -> Observation:
        """One tick. Raises ValueError for an action out of range."""
        action = check_action(action, self.source.actions)
        if self.at < len(self._acts) and self._acts[self.at] != action:
            self._forget(self.at)
        if self.at == len(self._acts):
            self._acts.append(action)
        self.at += 1
        return self.now

    @property
    def now(self) -> Observation:
        return self._observation(self.at)

    @property
    def over(self) -> bool:
        """Whether the game has ended with the present picture."""
        return self.now.terminated or self.now.truncated

    @property
    def began(self) -> int:
        """The position at which the present game began."""
        return max((p + 1 for p in self._overs if p < self.at), default=0)

    @property
    def game_seed(self) -> int:
        """The seed of the present game: each one that is over moves on to the next."""
        return self.seed + sum(p < self.at for p in self._overs)

    def mark(self) -> Mark:
        """The present moment."""
        return Mark(self.seed, self._acts[: self.at].tobytes())

    def go(self, mark: Mark) -> None:
        """Makes `mark` the present moment; what lies ahead stays known where the way is the same."""
        if mark.seed != self.seed:
            self.begin(mark.seed)
        acts = array("H", mark.acts)
        if self._acts[: len(acts)] != acts:
            pairs = enumerate(zip(self._acts, acts, strict=False))
            self._forget(next((i for i, (a, b) in pairs if a != b), len(self._acts)))
            self._acts = acts
        self.at = len(acts)

    def stretch(self, first: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Pictures from position `first` to the present one, and the actions between them."""
        images = [self._observation(p).image for p in range(first, self.at + 1)]
        return np.stack(images), np.array(self._acts[first : self.at], np.int64)

    def _observation(self, position: int) -> Observation:
        if position not in self._seen:
            self._play_to(position)
        return self._seen[position]

    def _play_to(self, position: int) -> None:
        if self._game_at is None or self._game_at >= position:
            self._game, self._game_at = self.source.reset(self.seed), 0
            self._most = max(self._room // self._game.image.nbytes, LEAST)
            self._keep(position)
        while self._game_at < position:
            if self._game.terminated or self._game.truncated:
                if self._game_at not in self._overs:
                    self._overs.append(self._game_at)
                games = self._overs.index(self._game_at) + 1
                self._game = self.source.reset(self.seed + games)
            else:
                self._game = self.source.step(self._acts[self._game_at])
            self._game_at += 1
            self._keep(position)

    def _keep(self, wanted: int) -> None:
        """Holds the newest observation where it lies near the wanted one; gives up the farthest."""
        assert self._game_at is not None
        if wanted - self._game_at < self._most:
            self._seen[self._game_at] = self._game
        if len(self._seen) > self._most:
            del self._seen[max(self._seen, key=lambda p: abs(p - wanted))]

    def _forget(self, position: int) -> None:
        """Another way is taken from `position` on."""
        del self._acts[position:]
        self._seen = {p: obs for p, obs in self._seen.items() if p <= position}
        self._overs = [p for p in self._overs if p < position]
        if self._game_at is not None and self._game_at > position:
            self._game_at = None


@dataclass(frozen=True)
class SourceState:
    """A moment of a real game, with its picture."""

    mark: Mark
    image: Image

    @property
    def nbytes(self) -> int:
        return len(self.mark.acts) + self.image.nbytes

    def hash(self) -> str:
        return hashlib.sha256(self.mark.digest() + self.image.tobytes()).hexdigest()


class SourceWorld:
    """A real game as something that can be played, rewound, saved and recorded: no model, no memory."""

    def __init__(self, source: Source) -> None:
        self.source, self.actions = source, source.actions
        self.tape = Tape(source)
        height, width = self.tape.begin(0).image.shape[:2]
        name = "".join(c if c.isalnum() or c in "-_." else "-" for c in source.name)
        self.info = WorldInfo(
            f"{name}-source", width, height, FPS, 0, (), source.licence, {}, {}, "", "source", _rate(source)
        )
        self.origin: dict[str, Any] = {"source": source.name}
        """Written into a recording, so that it is known what to replay it with."""

    def reset(self, seed: int = 0, scene: str | None = None) -> Frame:
        """A game that `seed` chooses."""
        return self._frame(self.tape.begin(seed), time.perf_counter())

    def step(self, action: int) -> Frame:
        """Goes on; where the game is over, the game of the next seed begins."""
        began = time.perf_counter()
        return self._frame(self.tape.step(action), began)

    def snapshot(self) -> SourceState:
        return SourceState(self.tape.mark(), self.tape.now.image)

    def restore(self, state: SourceState) -> None:
        self.tape.go(state.mark)

    def _frame(self, obs: Observation, began: float) -> Frame:
        ms = {"total": 1e3 * (time.perf_counter() - began)}
        return Frame(obs.image.copy(), obs.sound, FrameInfo(self.tape.at, ms))


def _rate(source: Source) -> int:
    """Samples a second of a source's sound; 0 where it has none. Doom's say so in their setup."""
    if not getattr(getattr(source, "setup", None), "sound", False):
        return 0
    from world_model.data.vizdoom_source import SAMPLES_PER_TICK

    return FPS * SAMPLES_PER_TICK
