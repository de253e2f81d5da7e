"""Real games behind one interface: `reset(seed)`, `step(action)`, 25 observations a second."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from world_model.types import Action, Image, SourceError


@dataclass(frozen=True)
class Label:
    """A thing in the picture: the game's name for it and the box around what is seen of it, in pixels."""

    name: str
    x: int
    y: int
    width: int
    height: int


@dataclass(frozen=True)
class Thing:
    """Something that stands or moves in the map, seen or not: the number that it keeps for as long as it is
    there, the game's name for it at present, and where its foot is, in map units, z over the floor."""

    number: int
    name: str
    x: float
    y: float
    z: float


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
    labels: what is in the picture, for players and for measuring. things: what there is in the map beside the
    player, for training alone. variables: int32, the numbers that the
    source names in its `variables` (health, ammunition, ...), or None.
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
    labels: tuple[Label, ...] = ()
    things: tuple[Thing, ...] = ()
    variables: NDArray[np.int32] | None = None


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


@runtime_checkable
class MapSource(Protocol):
    """A source that has another map for every seed."""

    @property
    def facts(self) -> dict[str, Any]:
        """What an episode's header tells of the present map, its `description` at least; JSON values."""
        ...


def check_action(action: int, actions: tuple[Action, ...]) -> int:
    """Returns `action` as an int, or raises ValueError with the range that is allowed."""
    if not 0 <= int(action) < len(actions):
        names = ", ".join(f"{i} {a.name}" for i, a in enumerate(actions))
        raise ValueError(f"action {action} is out of range; this game has {names}")
    return int(action)


def _rooms() -> Source:
    from world_model.data.vizdoom_source import rooms

    return rooms()


def _mazes() -> Source:
    from world_model.data.mazes.source import mazes

    return mazes()


def _mazes_small() -> Source:
    from world_model.data.mazes.source import mazes_small

    return mazes_small()


def _arena() -> Source:
    from world_model.data.arena import arena

    return arena()


def _arena_silent() -> Source:
    from world_model.data.arena import arena

    return arena(sound=False)


def _car_racing() -> Source:
    from world_model.data.gym_source import car_racing

    return car_racing()


SOURCES: dict[str, Callable[[], Source]] = {"rooms": _rooms, "car_racing": _car_racing} | {
    "mazes": _mazes,
    "mazes_small": _mazes_small,
    "arena": _arena,
}
SILENT: dict[str, Callable[[], Source]] = {"arena": _arena_silent}


def make_source(name: str, sound: bool = True) -> Source:
    """Opens a source by name, or `gym:ENV_ID` for any Gymnasium environment with discrete actions.

    Without `sound` a game that has sound is opened without, as where OpenAL is missing.
    Raises SourceError when the name is unknown or the game is not installed.
    """
    if name.startswith("gym:"):
        from world_model.data.gym_source import GymSource

        return GymSource(name.removeprefix("gym:"))
    if name not in SOURCES:
        raise SourceError(f"unknown source {name!r}; there are {', '.join(SOURCES)} and gym:ENV_ID")
    return (SOURCES if sound else SOURCES | SILENT)[name]()
