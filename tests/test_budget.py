"""The governor, fed with scripted costs."""

from __future__ import annotations

from game.budget import MAX_PATIENCE, PATIENCE, Governor, Level


def _levels(governor: Governor, work: list[float]) -> list[Level]:
    return [governor.observe(ms) for ms in work]


def test_within_the_budget_nothing_changes() -> None:
    governor = Governor()
    assert set(_levels(governor, [39.0] * 1000)) == {Level.FULL}
    assert governor.period_ms == 40


def test_a_single_stall_changes_nothing() -> None:
    assert set(_levels(Governor(), ([15.0] * 50 + [500.0]) * 20)) == {Level.FULL}


def test_overload_gives_up_in_order() -> None:
    levels = _levels(Governor(), [60.0] * 200)
    assert levels == sorted(levels)
    assert set(levels) == set(Level)


def test_slow_motion_fits_the_work_and_is_steady() -> None:
    governor = Governor()
    _levels(governor, [60.0] * 100)
    periods = set()
    for i in range(300):
        governor.observe(60.0 + i % 3)
        periods.add(governor.period_ms)
    assert len(periods) == 1
    assert 60 < periods.pop() < 75


def test_it_recovers_when_the_load_ends() -> None:
    governor = Governor()
    _levels(governor, [60.0] * 100)
    assert _levels(governor, [15.0] * 500)[-1] == Level.FULL
    assert governor.period_ms == 40


def test_it_does_not_flap_when_the_hud_is_what_does_not_fit() -> None:
    governor = Governor()
    changes, level = 0, Level.FULL
    for _ in range(20_000):
        work = 43.0 if governor.level == Level.FULL else 33.0
        new = governor.observe(work)
        changes += new != level
        level = new
    assert changes < 2 * 20_000 / MAX_PATIENCE + 16
    assert changes > 2
    assert PATIENCE < MAX_PATIENCE
