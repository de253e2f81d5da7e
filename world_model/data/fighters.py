"""Players that fight, for collecting: they aim with the boxes around what they see.

Such a player mixes fighting and fetching with all that a `Walker` does: wandering, taps, standing still.
One in six only walks: what happens to somebody who does not shoot is part of the world too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from world_model.data.policies import MODES, Walker
from world_model.data.sources import Label
from world_model.types import Action

FIGHT_MODES: Final = {
    "fight": (1.2, 400),
    "fetch": (0.7, 120),
    "wander": (0.16, 120),
    "explore": (0.06, 120),
    "look": (0.04, 60),
    "back": (0.03, 90),
    "taps": (0.07, 40),
    "still": (0.03, 25),
    "reverse": (0.03, 25),
}
"""Share of choices and longest duration in ticks, as in `policies.MODES`."""

PACIFISTS: Final = 1 / 6
CLOSE: Final = 62
"""Height in pixels from which a monster is too near."""


class Fighter(Walker):
    """Turns toward the nearest monster in sight, shoots when it is centred, backs off, strafes, fetches.

    monsters and items: names of the labels to shoot at and to pick up. Deterministic for a given seed and
    source.
    """

    def __init__(
        self, actions: tuple[Action, ...], seed: int, monsters: frozenset[str], items: frozenset[str]
    ) -> None:
        super().__init__(actions, seed)
        self._monsters, self._items = monsters, items
        if self._rng.random() >= PACIFISTS:
            self.modes = FIGHT_MODES
        else:
            self.modes = MODES
        self._skill = float(self._rng.uniform(0.35, 1.0))

    def _fight(self, ticks: int) -> Iterator[int]:
        side = self._side()
        while ticks > 0:
            target = self._nearest(self._monsters)
            if target is None:
                advance = self._rng.random() < 0.5 and not self._wall_ahead()
                yield self._key("up", side) if advance else self._key(side)
                ticks -= 1
            else:
                for action in self._attack(target):
                    yield action
                    ticks -= 1
                side = self._side() if self._rng.random() < 0.1 else side

    def _attack(self, target: Label) -> Iterator[int]:
        """A moment of fighting: some ticks that suit where the target is."""
        off = self._off_centre(target)
        side = "left" if off < 0 else "right"
        if abs(off) > max(5.0, target.width * 0.5):
            shoot = abs(off) < 30 and self._rng.random() < 0.25
            yield self._key("space", side) if shoot else self._key(side)
        elif target.height > CLOSE and self._rng.random() < 0.3:
            away = ("down", "down", "q", "e")[int(self._rng.integers(4))]
            yield from (self._key(away) for _ in range(self._hold(4, 12)))
        elif self._rng.random() < 0.06:
            step = ("q", "e", "up", "up")[int(self._rng.integers(4))]
            yield from (self._key(step) for _ in range(self._hold(3, 14)))
        elif self._rng.random() > self._skill:
            yield self._key()
        else:
            yield from (self._key("space") for _ in range(self._hold(1, 5)))

    def _fetch(self, ticks: int) -> Iterator[int]:
        """Walks to something to pick up that is in sight; gives up when there is none."""
        misses = 0
        while ticks > 0 and misses < 25 and not self.blocked:
            item = self._nearest(self._items)
            off = 0.0 if item is None else self._off_centre(item)
            misses = misses + 1 if item is None else 0
            if item is None:
                yield self._key("up" if misses < 10 else "left")  # what lies at one's feet is out of sight
            elif abs(off) > 8:
                yield self._key("up", "left" if off < 0 else "right")
            else:
                yield self._key("up")
            ticks -= 1
        yield self._key("up")

    def _nearest(self, names: frozenset[str]) -> Label | None:
        """What stands lowest in the picture among the things of these names."""
        seen = [] if self._obs is None else [label for label in self._obs.labels if label.name in names]
        return max(seen, key=lambda label: (label.y + label.height, label.height), default=None)

    def _off_centre(self, label: Label) -> float:
        assert self._obs is not None
        return label.x + label.width / 2 - self._obs.image.shape[1] / 2
