"""Traces: what they hold, and when they are refused."""

from __future__ import annotations

import json
from collections import deque
from pathlib import Path

import pytest

from game.clock import Sections
from game.options import Options
from game.play import play
from game.trace import check_trace, trace_events
from stub_world import FakeTime, StubWorld
from world_model.types import DataError


def test_a_trace_has_every_section(tmp_path: Path) -> None:
    trace = tmp_path / "trace.json"
    play(Options("stub", fast=True, ticks=5, home=tmp_path, trace=trace, log=False), StubWorld, dict)
    events = json.loads(trace.read_text())["traceEvents"]
    own = {"tick", "poll", "step", "speaker", "draw", "present"}
    assert {event["name"] for event in events} == own | {"world", "trunk", "head", "decode"}
    assert len(events) == 50
    assert all(event["ph"] == "X" and event["dur"] >= 0 for event in events)


def test_the_worlds_sections_lie_within_the_step_one_after_the_other() -> None:
    time = FakeTime(0)
    sections = Sections(time)
    sections.spans = deque()
    with sections.measure("step"):
        time.spend(0.010)
    sections.add_parts({"trunk": 4.0, "head": 3.0, "decode": 5.0})
    events = {e["name"]: (e["ts"], e["ts"] + e["dur"]) for e in trace_events(sections.spans)}
    assert events == {
        "step": (0, 10_000),
        "trunk": (0, 4000),
        "head": (4000, 7000),
        "decode": (7000, 10_000),  # not beyond the step
    }
    assert sections.last["decode"] == 5.0


def test_a_trace_that_cannot_be_written_is_told_before_a_window_opens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("game.window.Window", None)
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "trace.json"):
        with pytest.raises(DataError, match=r"trace|saved"):
            play(Options("stub", trace=path), StubWorld, dict)
    kept = tmp_path / "trace.json"
    kept.write_text("an earlier one")
    check_trace(kept)
    assert kept.read_text() == "an earlier one"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "trace.json"]
