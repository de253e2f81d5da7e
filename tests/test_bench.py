"""The bench is honest: on a fake clock it reports what a world of known cost costs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from game.bench import bench, read_result, table
from stub_world import FakeTime, StubWorld
from world_model.types import DataError, Frame


def _load(time: FakeTime, cost: float, first: float = 0.0) -> StubWorld:
    time.spend(2.0)
    world = StubWorld()
    step = world.step
    done: list[int] = []

    def slow(action: int) -> Frame:
        time.spend(first if not done else cost)
        done.append(action)
        return step(action)

    world.step = slow  # type: ignore[method-assign]
    return world


def test_a_world_of_known_cost_is_reported_within_five_percent() -> None:
    time = FakeTime(tick=1e-6)
    result = bench(lambda: _load(time, 0.015, 0.5), 100, 10, now=time, sleep=time.sleep)
    assert result["ms"]["total"]["p50"] == pytest.approx(15, rel=0.05)
    assert result["ms"]["trunk"]["p99"] == 3.0
    assert result["ticks_per_second"] == pytest.approx(1 / 0.015, rel=0.05)
    assert result["first_picture_s"] == pytest.approx(2.5, rel=0.05)
    assert result["over_40_ms"] == 0
    assert not time.slept
    assert set(result["rss_mb"]) == {"100"}


def test_paced_ticks_come_at_25_a_second() -> None:
    time = FakeTime(tick=1e-6)
    result = bench(lambda: _load(time, 0.015), 200, 10, paced=True, now=time, sleep=time.sleep)
    assert result["ticks_per_second"] == pytest.approx(25, rel=0.01)
    assert result["ms"]["total"]["p50"] == pytest.approx(15, rel=0.05)


def test_misses_are_counted() -> None:
    time = FakeTime(tick=1e-6)
    assert bench(lambda: _load(time, 0.041), 50, 0, now=time, sleep=time.sleep)["over_40_ms"] == 50 - 0


def test_a_dream_that_is_over_begins_again_and_nothing_of_it_counts() -> None:
    time, seeds = FakeTime(tick=1e-6), []

    def load() -> StubWorld:
        world = StubWorld(lasts=12)
        step, reset = world.step, world.reset

        def slow(action: int) -> Frame:
            time.spend(0.015)
            return step(action)

        def begin(seed: int) -> Frame:
            time.spend(3.0)
            seeds.append(seed)
            return reset(seed)

        world.step, world.reset = slow, begin  # type: ignore[method-assign, assignment]
        return world

    result = bench(load, 60, 10, now=time, sleep=time.sleep)
    assert seeds == list(range(len(seeds))) and len(seeds) > 4
    assert result["ms"]["total"]["max"] == pytest.approx(15, rel=0.05)
    assert result["ticks_per_second"] == pytest.approx(1 / 0.015, rel=0.05)


def test_the_last_line_compares_with_another_run(tmp_path: Path) -> None:
    time = FakeTime(tick=1e-6)
    fast = bench(lambda: _load(time, 0.010), 20, 2, now=time, sleep=time.sleep)
    slow = bench(lambda: _load(time, 0.020), 20, 2, now=time, sleep=time.sleep)
    path = tmp_path / "before.txt"
    path.write_text(table(slow) + "\n" + json.dumps(slow) + "\n")
    assert "0.50 x" in table(fast, read_result(path, paced=False))
    with pytest.raises(DataError, match="do not compare"):
        read_result(path, paced=True)


@pytest.mark.parametrize("text", ["", "nonsense", "{}", "[1]", '{"ms": {"total": 3}}', '{"ms": {}}'])
def test_another_file_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "file"
    path.write_text(text)
    with pytest.raises(DataError, match=str(path)):
        read_result(path, paced=False)
