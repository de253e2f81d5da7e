"""The governor: when a tick's work does not fit its 40 ms, presentation gives way in a fixed order.

Only what is shown and when changes, never the world's state: a replay is the same on every machine. That
is why fewer steps of the head are no rung here: what the head paints is fed back, so another number of
steps is another dream. There is one decoder, so a smaller one is no rung either.
"""

from __future__ import annotations

from collections import deque
from enum import IntEnum

from world_model.types import TICK_MS


class Level(IntEnum):
    """Rungs of the ladder, best first."""

    FULL = 0
    NO_HUD = 1
    HALF_PICTURES = 2
    """Every tick is dreamed, every second one is painted and shown."""
    SLOW_MOTION = 3


HASTE = 15
"""Ticks that are looked at before giving something up."""

PATIENCE = 100
"""Ticks that must be comfortable before something is tried again; doubled after each try that failed."""

MAX_PATIENCE = 3200


class Governor:
    """`observe` the work of each tick; `level`, `paint_every` and `period_ms` say how to go on."""

    def __init__(self, budget_ms: float = TICK_MS) -> None:
        self.budget_ms = budget_ms
        self.level = Level.FULL
        self.period_ms = budget_ms
        self._work: deque[float] = deque(maxlen=PATIENCE)
        self._painted: deque[float] = deque(maxlen=PATIENCE // 2)
        """Work of the ticks that were painted: what every tick would cost one rung higher."""
        self._last = 0.0
        self._patience = PATIENCE
        self._since = 0
        self._recovering = False

    @property
    def paint_every(self) -> int:
        """Of so many ticks one is painted."""
        return 2 if self.level >= Level.HALF_PICTURES else 1

    def observe(self, work_ms: float, painted: bool = True) -> Level:
        """`work_ms` is what the last tick took without waiting, `painted` whether its picture was part of
        that. Returns the level for the next one.
        """
        # Deadlines are absolute, so a dear tick and a cheap one fit where their mean does.
        self._work.append(work_ms if self.paint_every == 1 else (work_ms + self._last) / 2)
        self._last = work_ms
        if painted:
            self._painted.append(work_ms)
        self._since += 1
        if self._overloaded():
            self._give_up_something()
        elif self.level != Level.FULL and self._comfortable():
            self._move(Level(self.level - 1))
            self._recovering = True
        elif self._recovering and self._since > 4 * self._patience:
            self._recovering, self._patience = False, PATIENCE
        self._set_period()
        return self.level

    def _overloaded(self) -> bool:
        """A third of the last ticks were too long: a single stall is no reason."""
        recent = list(self._work)[-HASTE:]
        late = sum(work > self.budget_ms for work in recent)
        return self._since >= HASTE and 3 * late >= HASTE

    def _comfortable(self) -> bool:
        """The work fits with room to spare, as far as it is known as it would be one rung higher."""
        if self._since < self._patience:
            return False
        work = self._painted if self.level == Level.HALF_PICTURES else self._work
        return bool(work) and sorted(work)[int(0.95 * len(work))] < 0.85 * self.budget_ms

    def _give_up_something(self) -> None:
        if self._recovering:  # the last try to recover failed: wait longer before the next
            self._patience = min(2 * self._patience, MAX_PATIENCE)
            self._recovering = False
        if self.level < Level.SLOW_MOTION:
            self._move(Level(self.level + 1))

    def _move(self, level: Level) -> None:
        self.level, self._since = level, 0

    def _set_period(self) -> None:
        if self.level < Level.SLOW_MOTION:
            self.period_ms = self.budget_ms
            return
        recent = sorted(list(self._work)[-HASTE:])
        wanted = min(max(1.1 * recent[int(0.9 * (len(recent) - 1))], self.budget_ms), 10 * self.budget_ms)
        if abs(wanted - self.period_ms) > 0.15 * self.period_ms:  # small changes would only jitter
            self.period_ms = wanted
