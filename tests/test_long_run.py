"""The measurements of long sessions see what they are there to see."""

from __future__ import annotations

import json
import mmap

import numpy as np
import pytest

from tools.long_run import Stub, _alike, aged, in_window, main, rewind, unpaced
from world_model.types import Frame, ReverieError


class Leaking(Stub):
    """Keeps a quarter of a megabyte of every tick, and is slower in the second half."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[mmap.mmap] = []

    def step(self, action: int, paint: bool = True) -> Frame:
        # Straight from the system: an array would fit into what earlier tests gave back to the allocator.
        self.kept.append(mmap.mmap(-1, 250_000))
        self.kept[-1].write(b"x" * 250_000)
        self._ms = 5.0 if len(self.kept) > 150 else 0.0
        return super().step(action, paint)


def test_a_leak_and_a_slow_end_are_seen() -> None:
    result = unpaced(Leaking(), ticks=200, warmup=50)
    assert result["mb_per_10000_ticks"] == pytest.approx(2500, rel=0.3)
    assert result["p99_last_tenth"] > 5
    assert result["ms"]["p50"] > 0


class Ageing(Stub):
    """Slower by two thirds from its tick 300 on."""

    def step(self, action: int, paint: bool = True) -> Frame:
        self._ms = 5.0 if self.snapshot().tick >= 300 else 3.0
        return super().step(action, paint)


def test_a_session_that_grows_slower_with_age_is_seen() -> None:
    result = aged(Ageing, ticks=300, young=10, blocks=8)
    assert result["ms"]["p50"] > 4 and result["young_ms"]["p50"] < 4
    assert result["ratio"] > 1.3 and result["ratio_95"][0] > 1.3
    assert len(result["ratio_of_each"]) == 2 and min(result["ratio_of_each"]) > 1.3


class Breaking(Stub):
    """Breaks at its tick 40."""

    def step(self, action: int, paint: bool = True) -> Frame:
        if self.snapshot().tick >= 40:
            raise RuntimeError("broken")
        return super().step(action, paint)


@pytest.mark.parametrize("young", [10, 50])
def test_a_session_that_breaks_off_ends_the_comparison(young: int) -> None:
    with pytest.raises(ReverieError, match="broke off"):
        aged(Breaking, ticks=20, young=young, blocks=2)


def test_a_session_is_no_older_for_being_busy() -> None:
    young = np.array([[20.0] * 8 + [25.0] * 2, [0.0] * 8 + [1.0] * 2])
    busy = np.array([[20.0] * 3 + [25.0] * 7, [0.0] * 3 + [1.0] * 7])
    assert _alike(young, busy) == pytest.approx(1.0)
    assert _alike(young, busy * [[1.1], [1.0]]) == pytest.approx(1.1)
    never = np.array([[22.0] * 10, [0.0] * 10])
    assert _alike(young, never) == pytest.approx(1.1)
    assert _alike(never, np.array([[33.0], [1.0]])) == pytest.approx(1.5)


def test_what_can_be_gone_back_to_is_measured() -> None:
    result = rewind(Stub(state_bytes=400_000), ticks=200)
    assert result["reached_back_to"] == 25
    assert result["history_mb"] > 200 / 25 * 0.4
    assert result["rss_mb_at_most_while_going_back"] >= result["rss_mb_for_the_history"]


def test_the_models_time_is_no_overhead() -> None:
    result = in_window(ticks=60, ms=25.0, paced=False)
    assert result["driver"] == "dummy"
    assert result["sections_ms"]["world"]["p50"] >= 25
    assert 0 < result["overhead_ms"]["p50"] < result["sections_ms"]["tick"]["p50"] - 24


def test_the_last_line_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    main(["unpaced", "--world", "stub", "--ticks", "30", "--warmup", "5"])
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (document["benchmark"], document["ticks"]) == ("long_run unpaced", 30)
    assert document["machine"]["cpu"]
