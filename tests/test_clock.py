"""Deadlines on a clock of our own: exact, and instant."""

from __future__ import annotations

from collections import deque

import numpy as np
import pytest

from game.clock import Clock, FreeClock, Percentiles, Sections
from stub_world import FakeTime


def _clock(time: FakeTime, period: float = 0.04) -> Clock:
    return Clock(period, time, time.sleep)


def _wakes(time: FakeTime, clock: Clock, work: list[float]) -> list[float]:
    """When the clock woke before each piece of work, and once after the last."""
    wakes = []
    for seconds in [*work, 0.0]:
        clock.wait()
        wakes.append(time.now)
        time.spend(seconds)
    return wakes


def test_the_mean_period_is_kept_and_does_not_drift() -> None:
    time = FakeTime()
    work = list(np.random.default_rng(0).uniform(0.005, 0.035, 5000))
    wakes = _wakes(time, _clock(time), work)
    assert (wakes[-1] - wakes[0]) / 5000 == pytest.approx(0.04, rel=1e-5)
    assert np.abs(np.diff(wakes) - 0.04).max() < 1e-4


def test_sleep_that_overshoots_does_not_add_up() -> None:
    time = FakeTime()

    def sleep_long(seconds: float) -> None:
        time.sleep(seconds + 0.003)

    wakes = _wakes(time, Clock(0.04, time, sleep_long), [0.01] * 1000)
    assert (wakes[-1] - wakes[0]) / 1000 == pytest.approx(0.04, rel=1e-3)


def test_the_recent_median_forgets_what_was_before() -> None:
    stats = Percentiles(8)
    assert stats.recent() == 0.0
    for value in [100.0] * 5 + [1.0, 2.0, 3.0]:
        stats.add(value)
    assert (stats.recent(3), stats.recent()) == (2.0, 100.0)
    for value in range(20, 26):
        stats.add(value)
    assert stats.recent(5) == 23.0


def test_the_last_stretch_is_spun() -> None:
    time = FakeTime()
    clock = Clock(0.04, time, time.sleep, spin=0.002)
    _wakes(time, clock, [0.01])
    assert sum(time.slept) == pytest.approx(0.028, abs=1e-4)


def test_a_rest_is_no_stall_and_costs_no_deadline() -> None:
    time = FakeTime()
    clock = _clock(time)
    _wakes(time, clock, [0.01] * 5)
    time.spend(30)
    clock.rest()
    wakes = _wakes(time, clock, [0.01] * 5)
    assert np.diff(wakes) == pytest.approx([0.04] * 5, abs=1e-3)
    assert (clock.missed, clock.longest_stall) == (0, pytest.approx(0.04, abs=1e-3))


def test_no_burst_after_a_stall() -> None:
    time = FakeTime()
    clock = _clock(time)
    wakes = _wakes(time, clock, [0.01] * 10 + [0.99] + [0.01] * 10)
    gaps = np.diff(wakes)
    assert gaps[10] == pytest.approx(0.99, abs=1e-3)
    assert gaps[11:] == pytest.approx([0.04] * 10, abs=1e-3)
    assert clock.missed == 24
    assert clock.longest_stall == pytest.approx(0.99, abs=1e-3)


def test_a_small_delay_is_made_up_for() -> None:
    time = FakeTime()
    clock = _clock(time)
    wakes = _wakes(time, clock, [0.01, 0.055, 0.01, 0.01])
    assert wakes[-1] - wakes[0] == pytest.approx(0.16, abs=1e-3)
    assert clock.missed == 1


def test_a_suspend_of_an_hour_costs_one_tick() -> None:
    time = FakeTime()
    gaps = np.diff(_wakes(time, _clock(time), [0.01, 3600.0, 0.01, 0.01]))
    assert gaps[2:] == pytest.approx([0.04, 0.04], abs=1e-3)


def test_a_clock_that_goes_back_waits_one_period() -> None:
    time = FakeTime()
    clock = _clock(time)
    _wakes(time, clock, [0.01] * 3)
    time.spend(-1000.0)
    before = time.now
    wakes = _wakes(time, clock, [0.01] * 3)
    assert wakes[0] - before == pytest.approx(0.04, abs=1e-3)
    assert np.diff(wakes) == pytest.approx([0.04] * 3, abs=1e-3)


def test_a_new_period_counts_from_now() -> None:
    time = FakeTime()
    clock = _clock(time)
    _wakes(time, clock, [0.01] * 5)
    clock.period = 0.08
    assert np.diff(_wakes(time, clock, [0.01] * 4)) == pytest.approx([0.08] * 4, abs=1e-3)
    assert clock.missed == 0
    with pytest.raises(ValueError, match="positive"):
        clock.period = 0.0


def test_a_free_clock_never_sleeps() -> None:
    time = FakeTime()
    _wakes(time, FreeClock(0.04, time, time.sleep), [0.01] * 5)
    assert not time.slept


def test_percentiles_are_those_of_the_last_window() -> None:
    stats = Percentiles(window=100)
    assert stats.summary() == {"p50": 0.0, "p95": 0.0, "p99": 0.0}
    for value in [1000.0, *range(1, 101)]:
        stats.add(value)
    assert stats.summary()["p50"] == pytest.approx(50.5)
    assert stats.summary()["p95"] == pytest.approx(np.percentile(range(1, 101), 95))
    assert (stats.count, stats.max) == (101, 1000.0)


def test_sections_measure_milliseconds() -> None:
    time = FakeTime(tick=0.0)
    sections = Sections(time)
    sections.spans = deque()
    with sections.measure("draw"):
        time.spend(0.005)
    assert sections.last["draw"] == pytest.approx(5.0)
    assert list(sections.spans) == [("draw", pytest.approx(100.0), pytest.approx(100.005))]
