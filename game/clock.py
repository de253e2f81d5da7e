"""Time for the player: absolute deadlines at 25 Hz, and percentiles in bounded memory. All in seconds."""

from __future__ import annotations

import time as system_time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from world_model.types import FPS

SPIN = 0.0015
"""The last stretch before a deadline is spun: sleeping overshoots by up to a millisecond."""


class Clock:
    """Wakes at anchor + k * period, so errors do not add up.

    After a stall of more than one period it counts what was lost and starts again from now: a game that
    catches up in a burst is worse than one that was late once.
    """

    def __init__(
        self,
        period: float = 1.0 / FPS,
        time: Callable[[], float] = system_time.perf_counter,
        sleep: Callable[[float], None] = system_time.sleep,
        spin: float = SPIN,
    ) -> None:
        self._period, self._time, self._sleep, self._spin = period, time, sleep, spin
        self._anchor: float | None = None
        self._count = 0
        self._woke: float | None = None
        self.missed = 0
        """Deadlines that passed while the work was still going on."""
        self.longest_stall = 0.0
        """The longest time between two wake-ups."""

    @property
    def period(self) -> float:
        return self._period

    @period.setter
    def period(self, seconds: float) -> None:
        if seconds <= 0:
            raise ValueError(f"a period of {seconds} s is not positive")
        if seconds != self._period:
            self._period = seconds
            self._restart(self.now())

    def now(self) -> float:
        """Seconds of the clock that deadlines are measured with."""
        return self._time()

    def rest(self) -> None:
        """Nobody waits for a while: the next deadline counts from the next call of `wait`, which returns at
        once, and the time until then is no stall.
        """
        self._anchor = self._woke = None

    def wait(self) -> float:
        """Waits for the next deadline; returns how late it woke, in seconds. The first call does not wait."""
        now = self._time()
        if self._anchor is None:
            self._restart(now)
            self._note(now)
            return 0.0
        self._count += 1
        deadline = self._anchor + self._count * self._period
        late = now - deadline
        if late > self._period:
            self.missed += 1 + int(late / self._period)
            self._restart(now)
        elif late > 0:
            self.missed += 1
        else:
            if -late > self._period:  # the clock went back: one period from now, not an hour
                deadline = now + self._period
                self._restart(deadline)
            now = self._sleep_until(deadline)
            late = now - deadline
        self._note(now)
        return max(late, 0.0)

    def _restart(self, now: float) -> None:
        self._anchor, self._count = now, 0

    def _note(self, now: float) -> None:
        if self._woke is not None:
            self.longest_stall = max(self.longest_stall, now - self._woke)
        self._woke = now

    def _sleep_until(self, deadline: float) -> float:
        now = self._time()
        if deadline - now > self._spin:
            self._sleep(deadline - now - self._spin)
            now = self._time()
        while deadline - self._period <= now < deadline:  # ends, too, if the clock goes back
            now = self._time()
        return now


class FreeClock(Clock):
    """Never waits: as fast as the machine goes."""

    def wait(self) -> float:
        self._note(self._time())
        return 0.0


class Percentiles:
    """p50, p95, p99 of the last `window` values; count, mean and maximum of all of them."""

    def __init__(self, window: int = 1500) -> None:
        self._ring = np.zeros(window)
        self.count = 0
        self.total = 0.0
        self.max = 0.0

    def add(self, value: float) -> None:
        self._ring[self.count % len(self._ring)] = value
        self.count += 1
        self.total += value
        self.max = max(self.max, value)

    @property
    def mean(self) -> float:
        return self.total / self.count if self.count else 0.0

    @property
    def _held(self) -> NDArray[np.float64]:
        return self._ring[: min(self.count, len(self._ring))]

    def recent(self, count: int = 50) -> float:
        """Median of the last `count` values at most; 0 before the first."""
        last = np.arange(max(self.count - count, 0), self.count)[-len(self._ring) :]
        return float(np.median(self._ring[last % len(self._ring)])) if len(last) else 0.0

    def summary(self) -> dict[str, float]:
        """{"p50", "p95", "p99"}; zeros before the first value."""
        held = self._held
        if not len(held):
            return {"p50": 0.0, "p95": 0.0, "p99": 0.0}
        p50, p95, p99 = np.percentile(held, (50, 95, 99))
        return {"p50": float(p50), "p95": float(p95), "p99": float(p99)}


class Sections:
    """Milliseconds by section of a tick: a `Percentiles` for each name, and the last tick's values."""

    def __init__(self, time: Callable[[], float] = system_time.perf_counter) -> None:
        self._time = time
        self.stats: dict[str, Percentiles] = {}
        self.last: dict[str, float] = {}
        self.spans: deque[tuple[str, float, float]] | None = None
        """(section, start, end) in seconds of every span, where somebody collects them (a trace)."""
        self.span = (0.0, 0.0)
        """Start and end of what was measured last."""

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        began = self._time()
        yield
        self.span = (began, self._time())
        self.add(name, 1e3 * (self.span[1] - began), self.span)

    def add(self, name: str, ms: float, span: tuple[float, float] | None = None) -> None:
        """A value that was measured elsewhere; `span` is when, in seconds, if it belongs in a trace."""
        self.last[name] = ms
        if span is not None and self.spans is not None:
            self.spans.append((name, *span))
        if name not in self.stats:
            self.stats[name] = Percentiles()
        self.stats[name].add(ms)

    def add_parts(self, parts: Mapping[str, float]) -> None:
        """Milliseconds of the parts of what was measured last, as it tells them itself. Their spans lie one
        after the other, in their order, from its start on; none goes beyond its end.
        """
        at, end = self.span
        for name, ms in parts.items():
            after = min(at + ms / 1e3, end)
            self.add(name, ms, (at, after))
            at = after
