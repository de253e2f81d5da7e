"""Words that every other module speaks: actions, frames, information, errors.

Nothing here imports another module of the project.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

FPS = 25
"""Ticks a second of every world. One tick is 40 ms."""

TICK_MS = 1000.0 / FPS

Image = NDArray[np.uint8]
"""(H, W, 3) RGB, C-contiguous."""


class ReverieError(Exception):
    """An error that a person can mend; its text names the remedy. `exit_code` is the program's."""

    exit_code = 1


class WorldError(ReverieError):
    """A world folder that is missing, damaged, hostile or of a newer schema."""

    exit_code = 3


class SourceError(ReverieError):
    """A real game that is not installed, or that failed."""

    exit_code = 4


class DisplayError(ReverieError):
    """No window could be opened."""

    exit_code = 5


class DataError(ReverieError):
    """Episodes or recordings that cannot be read or written (damage, a full or read-only disk)."""

    exit_code = 6


@dataclass(frozen=True)
class Action:
    """One thing a player can do in a tick.

    `default_keys` are key names that must all be held ("up", "left"); the window maps letters such
    as W and A to the same names. No keys at all means: what happens when nothing is pressed.
    """

    name: str
    default_keys: tuple[str, ...] = ()


@dataclass(frozen=True)
class FrameInfo:
    """What one tick cost and what it used. Times in milliseconds."""

    tick: int
    ms: dict[str, float] = field(default_factory=dict)
    """Time by section: "trunk", "head", "decode", and "total"."""
    attended: tuple[int, ...] = ()
    """Bank positions of the keyframes that this tick read."""
    guard_events: int = 0
    """How often a non-finite state was replaced by the last good one since `reset`."""
    painted: bool = True
    """Whether the image is this tick's own; if not, it is the one that was painted last."""
    over: bool = False
    """Whether the world has come to its end, as by the player's death: from here on it stands still."""


@dataclass(frozen=True)
class Frame:
    """What one tick shows and sounds like."""

    image: Image
    """uint8 (H, W, 3) RGB, C-contiguous, owned by the caller."""
    audio: NDArray[np.int16] | None = None
    """int16 (samples, channels) of exactly one tick, or None where the world has no sound."""
    info: FrameInfo = field(default_factory=lambda: FrameInfo(tick=0))
    painter: Callable[[], Image] | None = field(default=None, repr=False, compare=False)
    """Paints the picture of a tick that was dreamed without; None where the image is its own."""

    def painted(self) -> Frame:
        """This frame with its own picture: itself where it has it, painted now where it has not."""
        if self.painter is None:
            return self
        return replace(self, image=self.painter(), info=replace(self.info, painted=True), painter=None)


@dataclass(frozen=True)
class WorldInfo:
    """What a world is, without loading it into a window."""

    name: str
    width: int
    height: int
    fps: int
    parameters: int
    scenes: tuple[str, ...]
    licence: str
    provenance: dict[str, Any]
    scores: dict[str, Any]
    weights_sha256: str
    backend: str = ""
    """What computes it: device, number format and thread count, as in "cpu-bf16-2"."""
    sound_rate: int = 0
    """Samples a second of `Frame.audio`; 0 where the world has no sound."""
