"""The real game beside the dream."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import game.play
from game.keys import Command, Input
from game.loop import HudState
from game.play import Options, open_world, play
from game.players import RESEED, RandomPlayer, Wanderer
from game.recorder import SessionLog
from game.replay import read_recording, replay
from game.session import Session
from game.twin import CONTEXT, TwinWorld, open_recorded, plot, psnr
from stub_source import StubSource
from stub_world import StubWorld, hold, press
from world_model.types import Action, DataError, Frame, SourceError


class ContextWorld(StubWorld):
    """Begins where its context ends, so that it dreams exactly what the stub source shows."""

    def __init__(self, source: StubSource) -> None:
        super().__init__()
        self.source, self.contexts = source, []  # type: StubSource, list[tuple[np.ndarray, np.ndarray]]

    def reset(self, seed: int = 0, scene: str | None = None, context: object = None) -> Frame:
        assert isinstance(context, tuple)
        self.contexts.append(context)
        obs, _ = context
        self.restore(self.source.state_of[obs[-1].tobytes()])
        return Frame(self.state.image.copy())


def _twin(length: int = 10_000) -> tuple[TwinWorld, ContextWorld, StubSource]:
    source = StubSource(length)
    dream = ContextWorld(source)
    return TwinWorld(dream, source), dream, source


def test_real_dream_difference_and_plot_are_the_four_quarters() -> None:
    twin, dream, source = _twin()
    twin.reset(seed=1)
    image = twin.step(2).image
    assert image.shape == (40, 64, 3)
    real = source.world.snapshot().image
    np.testing.assert_array_equal(image[:20, :32], real)
    np.testing.assert_array_equal(image[:20, 32:], dream.snapshot().image)
    assert not image[20:, :32].any()


def test_the_dream_sees_real_frames_from_the_start_of_the_clock_pattern() -> None:
    twin, dream, _ = _twin()
    twin.reset(seed=1)
    obs, act = dream.contexts[0]
    assert (len(obs), len(act)) == (CONTEXT + 1, CONTEXT)
    for tick in range(1, 60):
        twin.step(tick % 7)
        twin.step(twin.reseed_action)
        obs, act = dream.contexts[-1]
        first = CONTEXT + tick - len(act)
        assert first % 5 == 0
        assert len(act) >= CONTEXT
        assert len(obs) == len(act) + 1
        assert obs[0][0, 0, 1] == first % 256
        np.testing.assert_array_equal(obs[1:, 0, 0, 0], act)


def test_status_compares_with_the_held_picture() -> None:
    twin, _, _ = _twin()
    twin.reset(seed=1)
    assert twin.status == "PSNR -"
    twin.step(3)
    assert twin.status.startswith("PSNR 60.0 dB   copy-seed ")
    held = psnr(twin.tape.now.image, twin._held)
    assert f"copy-seed {held:.1f} dB" in twin.status


def test_a_twin_begins_again_where_the_game_is_over() -> None:
    twin, dream, source = _twin(length=CONTEXT + 3)
    twin.reset(seed=1)
    for _ in range(3):
        twin.step(1)
    assert (source.seeds, len(dream.contexts)) == ([1], 1)  # its last picture is still shown
    twin.step(1)
    assert (source.seeds, len(dream.contexts)) == ([1, 2], 2)
    assert len(dream.contexts[1][1]) == CONTEXT


def test_another_game_is_refused() -> None:
    source = StubSource()
    source.actions = (Action("jump"),)
    with pytest.raises(DataError, match="not the game"):
        TwinWorld(StubWorld(), source)


def test_the_reseed_key() -> None:
    twin, dream, _ = _twin()
    session = Session(twin)
    session.begin(seed=1)
    session.advance(press(Command.RESEED))
    assert len(dream.contexts) == 2
    assert (session.tick, twin.tape.at) == (2, CONTEXT + 1)  # the real game waits for one of the two
    alone = Session(StubWorld())
    alone.begin()
    alone.advance(press(Command.RESEED))
    assert "only a dream beside the real game" in alone.messages[-1]


def _steered(session: Session) -> None:
    """A session that goes everywhere: reseeds, rewinds over that, takes another way."""
    session.begin(seed=2)
    for tick in range(70):
        session.advance(press(Command.RESEED) if tick in (31, 60) else Input(tick % 7))
    for _ in range(30):
        session.advance(hold(Command.REWIND))
    for tick in range(20):
        session.advance(press(Command.RESEED) if tick == 9 else Input(1 + tick % 5))


def test_rewinding_a_twin_shows_what_was_there_and_another_way_is_the_same_as_going_there_at_once() -> None:
    twin, _, source = _twin()
    session = Session(twin)
    session.begin(seed=2)
    shown, taken = {0: session.frame.image}, [0]
    for tick in range(70):
        asked = press(Command.RESEED) if tick in (31, 60) else Input(tick % 7)
        taken += [twin.reseed_action, 0] if tick in (31, 60) else [asked.action]
        session.advance(asked)
        shown[session.tick] = session.frame.image
    for back in range(1, 61):
        session.advance(hold(Command.REWIND))
        if session.tick in shown:
            np.testing.assert_array_equal(session.frame.image, shown[session.tick], err_msg=str(back))
    assert session.tick < 31
    at = session.tick
    session.advance(Input(4))
    straight, _, _ = _twin()
    straight.reset(2)
    for action in taken[1 : at + 1]:
        straight.step(action)
    np.testing.assert_array_equal(session.frame.image, straight.step(4).image)
    assert session.world.snapshot().hash() == straight.snapshot().hash()
    assert len(source.seeds) == 2  # played again from its seed once, when another way was taken


def test_the_session_of_a_twin_replays_exactly(tmp_path: Path) -> None:
    twin, _, _ = _twin()
    log = SessionLog(tmp_path / "kept", twin, twin.origin)
    _steered(Session(twin, logs=[log]))
    log.close()
    recording = read_recording(tmp_path / "kept")
    assert recording.header["source"] == "stub"
    assert any(record.get("action") == twin.reseed_action for record in recording.records)
    compared, difference = replay(recording, _twin()[0])
    assert difference is None
    assert compared == 93  # each of the three takes a tick of its own


def test_players_of_chance_leave_the_reseed_action_alone() -> None:
    twin, _, _ = _twin()
    assert twin.actions[twin.reseed_action].name == RESEED
    image = np.zeros((20, 32, 3), np.uint8)
    for player in (RandomPlayer(twin.actions, 1), Wanderer([Action("a"), Action("b"), Action(RESEED)], 1)):
        assert twin.reseed_action not in {player.act(0, image) for _ in range(500)}


def test_a_recording_says_what_it_is_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("game.twin.make_source", lambda name, sound: StubSource())
    twin, dream, _ = _twin()
    header = {"world": twin.info.name, "backend": twin.info.backend, **twin.origin}
    opened = open_recorded(header, {"stub": dream}.__getitem__)
    assert isinstance(opened, TwinWorld)
    assert opened.info == twin.info
    assert open_recorded({"world": "stub", "backend": "cpu"}, {"stub": dream}.__getitem__) is dream
    with pytest.raises(DataError, match="does not say which real game"):
        open_recorded({"world": "x-source", "backend": "source"}, StubWorld)


def test_psnr_and_plot() -> None:
    black, grey = np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 51, np.uint8)
    assert psnr(black, black) == 60.0
    assert psnr(black, grey) == pytest.approx(13.98, abs=0.01)
    picture = plot([(40.0, 10.0)] * 250, 640, 40)
    assert tuple(picture[4, 30]) == (126, 211, 150)
    assert tuple(picture[33, 30]) == (242, 120, 110)
    assert (picture[4] == (126, 211, 150)).all()  # no gaps, though it is wider than there are ticks
    assert plot([], 64, 40).shape == (40, 64, 3)


def test_twin_and_source_on_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = StubSource()
    monkeypatch.setattr("game.twin.make_source", lambda name, sound: source)
    options = Options("stub", twin=True, fast=True, ticks=5, home=tmp_path)
    play(options, lambda name: ContextWorld(source), dict)
    play(Options(source="stub", fast=True, ticks=5, home=tmp_path), StubWorld, dict)
    kept = sorted(path.parent.name[:-16] for path in tmp_path.rglob("*.jsonl"))
    assert kept == ["stub-source", "stub-twin"]


def test_a_missing_game_says_what_is_there() -> None:
    with pytest.raises(SourceError, match="unknown source"):
        open_world(Options(source="nowhere"), StubWorld)


@pytest.mark.parametrize("twin", [False, True])
def test_a_game_that_nobody_hears_is_opened_without_sound(
    twin: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(name: str, sound: bool) -> StubSource:
        if sound:
            raise SourceError("no sound without OpenAL; install it or go on with --no-sound")
        return StubSource()

    monkeypatch.setattr("game.twin.make_source", make)
    options = Options("stub", source=None if twin else "stub", twin=twin, audio=False)
    world = open_world(options, lambda name: ContextWorld(StubSource()))
    header = {"world": world.info.name, "backend": world.info.backend, **world.origin}
    assert open_recorded(header, lambda name: ContextWorld(StubSource())).origin == world.origin
    with pytest.raises(SourceError, match="--no-audio"):
        open_world(replace(options, audio=True), lambda name: ContextWorld(StubSource()))


def test_a_twin_has_no_scenes() -> None:
    with pytest.raises(ValueError, match="--scene"):
        open_world(Options("stub", twin=True, scene="hall"), StubWorld)


def test_the_twin_key_goes_there_and_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[bool] = []
    keys = [Command.TWIN, Command.TWIN, Command.QUIT]

    def note(options: Options, load: object, window: object) -> StubWorld:
        opened.append(options.twin)
        return StubWorld()

    monkeypatch.setattr(game.play, "_load", note)
    monkeypatch.setattr("game.window.Window.poll", lambda window: press(keys.pop(0)))
    play(Options("stub", fast=True, home=tmp_path, log=False), StubWorld, dict)
    assert opened == [False, True, False]


def test_the_twin_key_without_the_game_says_so_and_play_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [press(Command.TWIN), Input(), press(Command.QUIT)]
    notes: list[str] = []

    def load(options: Options, load: object, window: object) -> StubWorld:
        if options.twin:
            raise SourceError("ViZDoom is not installed: pip install 'reverie[doom]'")
        return StubWorld()

    def draw(window: object, frame: object, hud: HudState) -> None:
        notes.append(hud.message)

    monkeypatch.setattr(game.play, "_load", load)
    monkeypatch.setattr("game.window.Window.poll", lambda window: asked.pop(0))
    monkeypatch.setattr("game.window.Window.draw", draw)
    play(Options("stub", fast=True, home=tmp_path, log=False), StubWorld, dict)
    assert notes == ["ViZDoom is not installed: pip install 'reverie[doom]'"]
