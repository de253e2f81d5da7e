"""Real games behind one interface: `reset(seed)`, `step(action)`, 25 observations a second."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from world_model.types import Action, Image, SourceError


@dataclass(frozen=True)
class Observation:
    """What a source gives at a tick.

    image: uint8 (H, W, 3). pose: float32 (3,) of x, y in map units and heading in radians,
    counter-clockwise, or None. sound: int16 (samples, channels) of the tick that led here, or None.
    phase: position of the *next* transition in the clock that maps the game's own rate to 25 Hz.
    depth: float16 (H / 4, W / 4), distance of the picture's every fourth pixel perpendicular to the picture
    plane, in map units, or None. For training alone: a dream never sees it.
    clearance: rough distance in map units to what stands left, ahead and right in the picture, where the
    source has a depth buffer; for walkers, never recorded.
    """

    image: Image
    pose: NDArray[np.float32] | None = None
    sound: NDArray[np.int16] | None = None
    reward: float = 0.0
    terminated: bool = False
    truncated: bool = False
    phase: int = 0
    depth: NDArray[np.float16] | None = None
    clearance: tuple[float, float, float] | None = None


class Source(Protocol):
    """A real game. Deterministic: the same seed and actions give the same observations."""

    name: str
    actions: tuple[Action, ...]
    fps: int
    licence: str
    phases: int
    """Length of the clock pattern that maps the game's own rate to 25 Hz."""

    def reset(self, seed: int) -> Observation: ...

    def step(self, action: int) -> Observation: ...

    def close(self) -> None: ...


def check_action(action: int, actions: tuple[Action, ...]) -> int:
    """Returns `action` as an int, or raises ValueError with the range that is allowed."""
    if not 0 <= int(action) < len(actions):
        names = ", ".join(f"{i} {a.name}" for i, a in enumerate(actions))
        raise ValueError(f"action {action} is out of range; this game has {names}")
    return int(action)


def _rooms() -> Source:
    from world_model.data.vizdoom_source import rooms

    return rooms()


def _car_racing() -> Source:
    from world_model.data.gym_source import car_racing

    return car_racing()


SOURCES: dict[str, Callable[[], Source]] = {"rooms": _rooms, "car_racing": _car_racing}


def make_source(name: str) -> Source:
    """Opens a source by name, or `gym:ENV_ID` for any Gymnasium environment with discrete actions.

    Raises SourceError when the name is unknown or the game is not installed.
    """
    if name.startswith("gym:"):
        from world_model.data.gym_source import GymSource

        return GymSource(name.removeprefix("gym:"))
    if name not in SOURCES:
        raise SourceError(f"unknown source {name!r}; there are {', '.join(SOURCES)} and gym:ENV_ID")
    return SOURCES[name]()
