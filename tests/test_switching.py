"""One world after another in a window: the twin, the picker, and what is said and kept at the end."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import game.play
from game.keys import Command, Input
from game.loop import HudState
from game.options import Options
from game.play import play
from game.replay import read_recording, replay
from game.source_world import SourceWorld
from game.window import Window
from stub_source import StubSource
from stub_world import StubWorld, press
from world_model.types import SourceError, WorldError


class Evening:
    """Plays inputs through the real window and keeps what was opened and shown."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, script: list[Input]) -> None:
        self.script, self.opened, self.shown = script, [], []  # type: list[Input], list[Options], list[Any]
        self.refuse: Callable[[Options], Exception | None] = lambda options: None
        monkeypatch.setattr(game.play, "_load", self._load)
        monkeypatch.setattr(Window, "poll", lambda window: self.script.pop(0))
        monkeypatch.setattr(Window, "draw", self._draw)

    def _load(self, options: Options, load: object, window: object) -> StubWorld:
        self.opened.append(options)
        error = self.refuse(options)
        if error is not None:
            raise error
        return StubWorld("twin" if options.twin else str(options.source or options.world))

    def _draw(self, frame: Any, hud: HudState) -> None:
        self.shown.append((hud.world, hud.seed, hud.tick, hud.message))


def _worlds(tmp_path: Path, **provenance: object) -> dict[str, Path]:
    """World folders with nothing in them but where they come from."""
    for name, origin in provenance.items():
        (tmp_path / name).mkdir()
        text = json.dumps({"provenance": origin}) if origin != "broken" else "{"
        (tmp_path / name / "world.json").write_text(text)
    return {name: tmp_path / name for name in provenance}


WALK, QUIT = [Input(1)] * 3, press(Command.QUIT)


def test_a_twin_that_cannot_be_opened_leaves_the_session_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evening = Evening(monkeypatch, [*WALK, press(Command.TWIN), *WALK, QUIT])
    evening.refuse = lambda o: SourceError("ViZDoom is not installed") if o.twin else None
    summary = play(Options("stub", scene="yard", fast=True, home=tmp_path), StubWorld, dict)
    assert [tick for _, _, tick, _ in evening.shown] == [1, 2, 3, 4, 5, 6]
    assert evening.shown[3][3] == "ViZDoom is not installed"
    (folder,) = (tmp_path / "recordings").iterdir()
    assert replay(read_recording(folder), StubWorld()) == (6, None)
    assert summary is not None and summary.ticks == 6


def test_a_twin_begins_with_the_seed_of_the_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evening = Evening(
        monkeypatch, [*WALK, press(Command.RESTART), press(Command.TWIN), *WALK, press(Command.TWIN), QUIT]
    )
    play(Options("stub", seed=7, fast=True, home=tmp_path, log=False), StubWorld, dict)
    assert [(o.twin, o.seed) for o in evening.opened] == [(False, 7), (True, 8), (False, 8)]
    assert ("twin", 8, 1) in [shown[:3] for shown in evening.shown]


def test_the_twin_of_a_real_game_is_the_dream_that_learned_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = _worlds(tmp_path, bad="broken", rooms={"source": "rooms"}, mine={"source": "arena"})
    evening = Evening(monkeypatch, [press(Command.TWIN), QUIT])
    play(Options(source="arena", fast=True, home=tmp_path, log=False), StubWorld, lambda: found)
    assert [(o.world, o.source, o.twin) for o in evening.opened] == [
        (None, "arena", False),
        ("mine", None, True),
    ]


def test_a_real_game_that_nobody_dreams_of_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evening = Evening(monkeypatch, [*WALK, press(Command.TWIN), *WALK, QUIT])
    found = _worlds(tmp_path, rooms={"source": "rooms"})
    play(Options(source="car_racing", fast=True, home=tmp_path, log=False), StubWorld, lambda: found)
    assert len(evening.opened) == 1
    assert evening.shown[3][2:] == (4, "no world that dreams of car_racing is installed")


def test_escape_in_the_picker_returns_to_the_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evening = Evening(monkeypatch, [*WALK, press(Command.PICKER), *WALK, QUIT])
    monkeypatch.setattr(Window, "menu_keys", lambda window: ["escape"])
    found = _worlds(tmp_path, one={}, two={})
    play(Options("one", fast=True, home=tmp_path), StubWorld, lambda: found)
    assert [shown[2] for shown in evening.shown] == [1, 2, 3, 4, 5, 6]
    (folder,) = (tmp_path / "recordings").iterdir()
    assert replay(read_recording(folder), StubWorld("one")) == (6, None)


def test_closing_the_window_in_the_picker_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evening = Evening(monkeypatch, [*WALK, press(Command.PICKER)])

    def close(window: Window) -> list[str]:
        window.closing = True
        return ["escape"]

    monkeypatch.setattr(Window, "menu_keys", close)
    found = _worlds(tmp_path, one={}, two={})
    summary = play(Options("one", fast=True, home=tmp_path), StubWorld, lambda: found)
    assert summary is not None and summary.ticks == 3
    assert evening.script == []


def test_a_damaged_world_leaves_the_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evening = Evening(monkeypatch, [*WALK, press(Command.PICKER), *WALK, QUIT])
    evening.refuse = lambda o: WorldError("two is damaged") if o.world == "two" else None
    monkeypatch.setattr(Window, "menu_keys", lambda window: ["right", "return"])
    found = _worlds(tmp_path, one={}, two={})
    play(Options("one", fast=True, home=tmp_path, log=False), StubWorld, lambda: found)
    assert evening.shown[3] == ("one", 0, 4, "two is damaged")


@pytest.mark.parametrize("closing", [True, False])
def test_leaving_while_a_world_loads_closes_its_game(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, closing: bool
) -> None:
    """Escape goes back to the session, the close button leaves."""
    source, loading = StubSource(), threading.Event()
    shown: list[int] = []
    closed: list[bool] = []
    monkeypatch.setattr(source, "close", lambda: closed.append(True))
    script = [*WALK, press(Command.TWIN)]

    def open_world(options: Options, load: object) -> Any:
        if not options.twin:
            return StubWorld()
        loading.wait(10)
        return SourceWorld(source)

    def poll(window: Window) -> Input:
        if script:
            return script.pop(0)
        if not loading.is_set():
            loading.set()
            window.closing = closing
            script.extend([] if closing else WALK)
        return QUIT

    monkeypatch.setattr(game.play, "open_world", open_world)
    monkeypatch.setattr(Window, "poll", poll)
    monkeypatch.setattr(Window, "draw", lambda window, frame, hud: shown.append(hud.tick))
    play(Options("stub", fast=True, home=tmp_path, log=False), StubWorld, dict)
    assert closed == [True]
    assert shown == ([1, 2, 3] if closing else [1, 2, 3, 4, 5, 6])


def test_all_worlds_are_in_the_trace_the_count_and_the_notes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = tmp_path / "trace.json"
    evening = Evening(monkeypatch, [*WALK, press(Command.TWIN), *WALK])
    summary = play(Options("stub", fast=True, ticks=5, home=tmp_path, trace=trace), StubWorld, dict)
    assert len(evening.shown) == 5
    events = json.loads(trace.read_text())["traceEvents"]
    assert sum(event["name"] == "step" for event in events) == 5
    assert summary is not None
    kept = sorted(str(path) for path in (tmp_path / "recordings").iterdir())
    assert sorted(summary.notes) == [f"recording: {path}" for path in kept]
    assert len(kept) == 2


def test_a_script_is_not_taken_to_another_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "script"
    script.write_text("forward 20\n")
    evening = Evening(monkeypatch, [press(Command.TWIN), QUIT])
    play(Options("stub", player=str(script), fast=True, home=tmp_path, log=False), StubWorld, dict)
    assert [o.player for o in evening.opened] == [str(script), "human"]


def test_film_and_log_are_kept_where_one_wants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    av = pytest.importorskip("av")
    evening = Evening(monkeypatch, [*WALK, QUIT])
    options = Options("stub", fast=True, home=tmp_path / "home", record=tmp_path / "kept")
    summary = play(options, StubWorld, dict)
    (log,) = (path for path in (tmp_path / "kept").iterdir() if path.is_dir())
    (film,) = (tmp_path / "kept").glob("*.mp4")
    assert summary is not None
    assert summary.lines()[-2:] == [f"recording: {log}", f"film saved: {film}"]
    assert replay(read_recording(log), StubWorld()) == (3, None)
    with av.open(str(film)) as container:
        assert sum(1 for _ in container.decode(video=0)) == len(evening.shown) == 3
    assert not list((tmp_path / "home").rglob("*.jsonl"))
