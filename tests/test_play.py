"""The whole player on SDL's dummy driver."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pygame
import pytest

from game.clock import FreeClock
from game.keys import Command, Input, default_bindings
from game.loop import HudState, Loop
from game.paint import letterbox
from game.play import Options, play
from game.replay import read_recording, replay
from game.session import Session
from game.window import Window
from stub_world import ACTIONS, BACK, FORWARD, LEFT, StubWorld
from world_model.types import DisplayError, Frame, WorldError


@pytest.fixture
def window() -> Iterator[Window]:
    window = Window(default_bindings(ACTIONS), ACTIONS)
    window.poll()
    yield window
    window.close()


def _key(kind: int, key: int) -> None:
    pygame.event.post(pygame.event.Event(kind, key=key))


def _frame() -> Frame:
    image = np.zeros((160, 256, 3), np.uint8)
    image[:80, :128] = (200, 10, 30)
    image[80:, 128:] = (10, 30, 200)
    return Frame(image)


def test_keys_reach_the_action(window: Window) -> None:
    _key(pygame.KEYDOWN, pygame.K_w)
    assert window.poll().action == FORWARD
    assert window.poll().action == FORWARD
    _key(pygame.KEYUP, pygame.K_w)
    assert window.poll().action == 0


def test_a_short_tap_acts(window: Window) -> None:
    _key(pygame.KEYDOWN, pygame.K_LEFT)
    _key(pygame.KEYUP, pygame.K_LEFT)
    assert [window.poll().action, window.poll().action] == [LEFT, 0]


def test_no_key_is_stuck_after_losing_the_focus(window: Window) -> None:
    _key(pygame.KEYDOWN, pygame.K_s)
    assert window.poll().action == BACK
    pygame.event.post(pygame.event.Event(pygame.WINDOWFOCUSLOST))
    assert window.poll().action == 0


def test_closing_the_window_or_escape_quits(window: Window) -> None:
    pygame.event.post(pygame.event.Event(pygame.QUIT))
    assert window.poll().asks(Command.QUIT)
    _key(pygame.KEYDOWN, pygame.K_ESCAPE)
    assert window.poll().asks(Command.QUIT)


def test_escape_closes_the_help_first(window: Window) -> None:
    _key(pygame.KEYDOWN, pygame.K_h)
    window.poll()
    assert window.helping
    _key(pygame.KEYDOWN, pygame.K_ESCAPE)
    assert not window.poll().asks(Command.QUIT)
    assert not window.helping


def test_the_close_button_leaves_whatever_is_shown(window: Window) -> None:
    _key(pygame.KEYDOWN, pygame.K_h)
    window.poll()
    assert window.helping
    pygame.event.post(pygame.event.Event(pygame.QUIT))
    assert window.poll().asks(Command.QUIT)
    assert window.closing


def test_a_stick_that_stays_pushed_moves_once_in_a_menu(window: Window) -> None:
    def push(value: int) -> None:
        axis = pygame.CONTROLLER_AXIS_LEFTX
        motion = pygame.event.Event(pygame.CONTROLLERAXISMOTION, axis=axis, value=value, instance_id=7)
        pygame.event.post(motion)

    seen = []
    for value in (20_000, 24_000, 28_000, 32_000, 0, 30_000):
        push(value)
        seen.append(window.menu_keys())
    assert seen == [["right"], [], [], [], [], ["right"]]
    assert window.poll() == Input()  # it is not held in the game that begins


def test_an_unplugged_pad_holds_nothing(window: Window) -> None:
    pad: dict[str, Any] = {"instance_id": 7}
    up = pygame.CONTROLLER_BUTTON_DPAD_UP
    pygame.event.post(pygame.event.Event(pygame.CONTROLLERBUTTONDOWN, button=up, **pad))
    axis = pygame.CONTROLLER_AXIS_LEFTX
    pygame.event.post(pygame.event.Event(pygame.CONTROLLERAXISMOTION, axis=axis, value=-30000, **pad))
    assert ACTIONS[window.poll().action].name == "forward_left"
    pygame.event.post(pygame.event.Event(pygame.CONTROLLERDEVICEREMOVED, **pad))
    assert window.poll().action == 0


def _pixel(window: Window, x: int, y: int) -> tuple[int, ...]:
    return tuple(window.screen.get_at((x, y)))[:3]


def test_the_picture_fills_the_window_in_its_aspect(window: Window) -> None:
    window.figures = False
    window.draw(_frame(), HudState())
    assert _pixel(window, 10, 10) == (200, 10, 30)
    assert _pixel(window, 1270, 790) == (10, 30, 200)
    pygame.display.set_mode((1000, 400), pygame.RESIZABLE)
    window.draw(_frame(), HudState())
    assert _pixel(window, 100, 200) == (11, 12, 16)
    assert _pixel(window, 200, 100) == (200, 10, 30)


@pytest.mark.parametrize(
    ("outer", "integer", "expected"),
    [
        ((1280, 800), False, (0, 0, 1280, 800)),
        ((1920, 1080), False, (96, 0, 1728, 1080)),
        ((1920, 1080), True, (192, 60, 1536, 960)),
        ((100, 400), True, (0, 169, 100, 62)),
    ],
)
def test_letterbox(outer: tuple[int, int], integer: bool, expected: tuple[int, int, int, int]) -> None:
    assert tuple(letterbox((256, 160), outer, integer)) == expected


@pytest.mark.parametrize("size", [(1280, 800), (320, 200), (200, 900), (1, 1)])
def test_everything_can_be_drawn_at_any_size(window: Window, size: tuple[int, int]) -> None:
    world = StubWorld()
    world.reset()
    pygame.display.set_mode(size, pygame.RESIZABLE)
    window.memory = window.helping = True
    memory = world.memory
    state = HudState("rooms", message="a message", window=(3, 16), keyframes=memory.keyframes, attended=(1,))
    for sharp in (False, True):
        window.sharp = sharp
        window.draw(_frame(), state)
        window.flip()
    window.loading("rooms", 1.0)


def test_no_display_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDL_VIDEODRIVER", "no_such_driver")
    with pytest.raises(DisplayError, match="DISPLAY"):
        Window(default_bindings())


def test_play_opens_plays_logs_and_leaves(tmp_path: Path) -> None:
    options = Options(world="stub", seed=3, player="wander", fast=True, ticks=60, home=tmp_path)
    summary = play(options, lambda name: StubWorld(name), dict)
    assert summary is not None and summary.ticks == 60
    (folder,) = (tmp_path / "recordings").iterdir()
    assert replay(read_recording(folder), StubWorld()) == (60, None)
    assert not pygame.display.get_init()


def test_a_world_that_does_not_load_closes_the_window(tmp_path: Path) -> None:
    def load(name: str) -> StubWorld:
        raise WorldError(f"unknown world {name!r}")

    with pytest.raises(WorldError, match="unknown world"):
        play(Options(world="nowhere", home=tmp_path), load, dict)
    assert not pygame.display.get_init()


def test_keys_through_the_window_give_the_frames_of_the_world_alone(tmp_path: Path) -> None:
    keys = [pygame.K_w, pygame.K_a, pygame.K_DOWN, pygame.K_d, pygame.K_UP]
    taps = [int(n) for n in np.random.default_rng(0).integers(0, 6, 40)]

    class Typist(Window):
        def poll(self) -> Input:
            if not taps:
                return Input(0, ((Command.QUIT, ""),))
            tap = taps.pop(0)
            if tap < 5:
                _key(pygame.KEYDOWN, keys[tap])
                _key(pygame.KEYUP, keys[tap])
            return super().poll()

    wanted = [{0: 1, 1: 3, 2: 2, 3: 4, 4: 1, 5: 0}[tap] for tap in taps]
    window = Typist(default_bindings(ACTIONS), ACTIONS)
    pygame.event.clear()
    session = Session(StubWorld())
    session.begin(seed=1)
    Loop(session, window, FreeClock()).run()
    window.close()
    assert session.history is not None
    assert list(session.history.actions) == wanted
    world = StubWorld()
    frame = world.reset(1)
    for action in wanted:
        frame = world.step(action)
    np.testing.assert_array_equal(session.frame.image, frame.image)


def test_an_unknown_scene_leaves_no_recording(tmp_path: Path) -> None:
    with pytest.raises(WorldError, match="there are: hall, yard"):
        play(Options("stub", scene="attic", home=tmp_path), lambda name: StubWorld(name), dict)
    assert not list(tmp_path.rglob("*.jsonl"))
