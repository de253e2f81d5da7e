"""The real game through the loop, and beside the dream."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import game.play
from game.keys import Command, Input
from game.loop import HudState
from game.play import Options, open_world, play
from game.session import Session
from game.twin import CONTEXT, SourceWorld, TwinWorld, plot, psnr
from stub_world import ACTIONS, StubWorld, press
from world_model.data.sources import Observation
from world_model.types import Action, DataError, Frame, SourceError


class StubSource:
    """The stub world's pictures as a real game that ends every `length` ticks."""

    name, fps, licence, phases = "stub", 25, "MIT", 5
    actions: tuple[Action, ...] = ACTIONS

    def __init__(self, length: int = 10_000) -> None:
        self.world, self.length, self.tick = StubWorld(), length, 0
        self.seeds: list[int] = []

    def reset(self, seed: int) -> Observation:
        self.seeds.append(seed)
        self.tick = 0
        return Observation(self.world.reset(seed).image)

    def step(self, action: int) -> Observation:
        self.tick += 1
        return Observation(self.world.step(action).image, terminated=self.tick >= self.length)

    def close(self) -> None: ...


class ContextWorld(StubWorld):
    """Begins where its context ends, so that it dreams exactly what the stub source shows."""

    def __init__(self, source: StubSource) -> None:
        super().__init__()
        self.source, self.contexts = source, []  # type: StubSource, list[tuple[np.ndarray, np.ndarray]]

    def reset(self, seed: int = 0, scene: str | None = None, context: object = None) -> Frame:
        assert isinstance(context, tuple)
        self.contexts.append(context)
        self.restore(self.source.world.snapshot())
        return Frame(self.state.image.copy())


def _twin(length: int = 10_000) -> tuple[TwinWorld, ContextWorld, StubSource]:
    source = StubSource(length)
    dream = ContextWorld(source)
    return TwinWorld(dream, source), dream, source


def test_a_real_game_can_be_played_and_begins_again() -> None:
    source = StubSource(length=5)
    session = Session(SourceWorld(source))
    session.begin(seed=3)
    for _ in range(11):
        session.advance(Input(1))
    assert source.seeds == [0, 3, 4, 5]
    assert session.tick == 11
    session.advance(press(Command.SAVE))
    assert "no save slots" in session.messages[-1]


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
        twin.reseed()
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
    held = psnr(twin.source.world.snapshot().image, twin._held)  # type: ignore[attr-defined]
    assert f"copy-seed {held:.1f} dB" in twin.status


def test_a_twin_begins_again_where_the_game_is_over() -> None:
    twin, dream, source = _twin(length=CONTEXT + 3)
    twin.reset(seed=1)
    for _ in range(3):
        twin.step(1)
    assert source.seeds == [1, 2]
    assert len(dream.contexts) == 2


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


def test_psnr_and_plot() -> None:
    black, grey = np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 51, np.uint8)
    assert psnr(black, black) == 60.0
    assert psnr(black, grey) == pytest.approx(13.98, abs=0.01)
    picture = plot([(40.0, 10.0)] * 250, 64, 40)
    assert tuple(picture[4, 30]) == (126, 211, 150)
    assert tuple(picture[35, 30]) == (242, 120, 110)
    assert plot([], 64, 40).shape == (40, 64, 3)


def test_twin_and_source_on_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = StubSource()
    monkeypatch.setattr("world_model.data.sources.make_source", lambda name: source)
    options = Options("stub", twin=True, fast=True, ticks=5, home=tmp_path)
    play(options, lambda name: ContextWorld(source), dict)
    assert not list(tmp_path.rglob("*.jsonl"))
    play(Options(source="stub", fast=True, ticks=5, home=tmp_path), StubWorld, dict)
    assert len(list(tmp_path.rglob("*.jsonl"))) == 1


def test_a_missing_game_says_what_is_there() -> None:
    with pytest.raises(SourceError, match="unknown source"):
        open_world(Options(source="nowhere"), StubWorld)


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
