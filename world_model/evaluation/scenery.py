"""Where in a source's pictures things happen, and a stretch of a fight as protocol `events` looks at it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from world_model.data.arena import BAR_LATE, FIELDS, FLASH, ITEMS, MONSTERS, STATUS_BAR
from world_model.data.episodes import Episode
from world_model.evaluation import events
from world_model.evaluation.digits import DigitReader, Reading
from world_model.evaluation.events import Box
from world_model.evaluation.kills import small_views
from world_model.evaluation.protocol import Clip
from world_model.evaluation.windows import HeldOut
from world_model.types import DataError

HEALTH, AMMO, KILLS = "HEALTH", "SELECTED_WEAPON_AMMO", "KILLCOUNT"


@dataclass(frozen=True)
class Scenery:
    """Where in a source's picture things happen. `fields`: number boxes by the variable that they show, and
    `late`, the ticks by which they come after it."""

    flash: Box
    bar: Box
    fields: dict[str, Box]
    late: int
    living: frozenset[str]
    items: frozenset[str]


SCENERY = {"arena": Scenery(FLASH, STATUS_BAR, FIELDS, BAR_LATE, MONSTERS, ITEMS)}
"""By source. The protocol measures these alone."""


@dataclass
class Stretch:
    """One window as it was dreamed, or as it was: everything that is measured of it, tick 0 first.

    Sound begins with tick 1; it is empty where there is none.
    """

    scenery: Scenery
    flash: list[NDArray[np.uint8]] = field(default_factory=list)
    bar: list[NDArray[np.uint8]] = field(default_factory=list)
    small: list[Tensor] = field(default_factory=list)
    sound: list[NDArray[np.int16]] = field(default_factory=list)

    def take(self, picture: NDArray[np.uint8]) -> None:
        self.flash.append(events.crop(picture, self.scenery.flash).copy())
        self.bar.append(events.crop(picture, self.scenery.bar).copy())
        self.small.append(small_views(picture[None])[0])

    def read(self, reader: DigitReader, name: str) -> Reading:
        """What the field of a variable shows, tick by tick."""
        x, y, width, height = self.scenery.fields[name]
        left, top = self.scenery.bar[:2]
        return reader.read(np.stack(self.bar), (x - left, y - top, width, height))

    @property
    def views(self) -> Tensor:
        """`small_views` of all ticks."""
        return torch.stack(self.small)

    def flashes(self) -> events.Events:
        """(ticks,), the first of which is tick 1."""
        crops = np.stack(self.flash)
        return events.flash_onsets(crops, (0, 0, crops.shape[2], crops.shape[1]))[1:]

    def bangs(self) -> events.Events:
        """(ticks,), the first of which is tick 1."""
        return events.sound_onsets(np.stack(self.sound))


def scenery_of(data: HeldOut) -> Scenery:
    """Raises DataError for a source of which the protocol does not know where things happen."""
    source = str(data.episodes[0].header.get("source"))
    if source not in SCENERY:
        raise DataError(f"events are known of {', '.join(SCENERY)} and not of {source}")
    if any(e.variables is None or e.labels is None for e in data.episodes):
        raise DataError("the held-out episodes tell no game variables or labels; collect them again")
    return SCENERY[source]


def alive(data: HeldOut) -> HeldOut:
    """The episodes without the picture that ends a game: it is a copy of the one before it."""
    return replace(data, episodes=tuple(_alive(episode) for episode in data.episodes))


def _alive(episode: Episode) -> Episode:
    if not episode.header.get("terminated"):
        return episode
    arrays = {name: array for name, array in vars(episode).items() if name != "header" and array is not None}
    return replace(episode, **{name: array[:-1] for name, array in arrays.items()})


def headers_of(data: HeldOut) -> dict[str, dict[str, Any]]:
    """Headers by the names of the episodes."""
    return dict(zip(data.names, (e.header for e in data.episodes), strict=True))


def told(clip: Clip, headers: dict[str, dict[str, Any]], name: str, late: int = 0) -> NDArray[np.int32]:
    """A game variable at tick 0, 1, ..., or `late` ticks before each; what is below 0 counts as 0."""
    assert clip.variables is not None, "scenery_of makes sure of variables"
    column = headers[clip.episode]["variables"].index(name)
    first = clip.context - 1 - late
    return np.asarray(clip.variables[first : first + clip.ticks + 1, column]).clip(0)
