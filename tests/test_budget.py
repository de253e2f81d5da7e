"""The governor, fed with scripted costs."""

from __future__ import annotations

from itertools import pairwise

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


def _run(governor: Governor, ticks: int, step: float, picture: float, hud: float = 0.0) -> list[Level]:
    """Levels where a tick's work is the dream, its picture if it is painted, and the figures if shown."""
    levels = []
    for tick in range(ticks):
        painted = tick % governor.paint_every == 0
        work = step + picture * painted + hud * (governor.level == Level.FULL)
        levels.append(governor.observe(work, painted))
    return levels


def test_the_rungs_come_in_the_order_of_their_worth() -> None:
    assert [level.name for level in sorted(Level)] == ["FULL", "NO_HUD", "HALF_PICTURES", "SLOW_MOTION"]
    governor = Governor()
    seen = list(dict.fromkeys(_run(governor, 200, step=50, picture=15)))
    assert seen == sorted(Level)


def test_every_second_picture_is_enough_where_it_is_the_picture_that_does_not_fit() -> None:
    governor = Governor()
    levels = _run(governor, 5000, step=28, picture=16)
    assert set(levels[100:]) == {Level.HALF_PICTURES}
    assert governor.period_ms == 40
    assert _run(governor, 400, step=15, picture=8)[-1] == Level.FULL


def test_it_does_not_try_every_picture_again_while_it_sees_that_they_would_not_fit() -> None:
    governor = Governor()
    levels = _run(governor, 1000, step=24, picture=13)  # 37 ms fit, though without room to spare
    assert set(levels) == {Level.FULL}
    levels = _run(governor, 100, step=30, picture=13) + _run(governor, 20_000, step=24, picture=13)
    assert sum(a != b for a, b in pairwise(levels)) == 2
    assert levels[-1] == Level.HALF_PICTURES


def test_slow_motion_ends_one_rung_at_a_time() -> None:
    governor = Governor()
    _run(governor, 200, step=60, picture=10)
    levels = _run(governor, 1000, step=20, picture=10)
    assert list(dict.fromkeys(levels)) == sorted(Level, reverse=True)


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
