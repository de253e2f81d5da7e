"""Keys to actions, without a keyboard."""

from __future__ import annotations

import pytest

from game.keys import Command, Keyboard, choose_action, default_bindings
from stub_world import ACTIONS, BACK, FORWARD, LEFT, RIGHT
from world_model.types import Action


def _keyboard() -> Keyboard:
    return Keyboard(default_bindings(ACTIONS))


@pytest.mark.parametrize(
    ("held", "name"),
    [
        ((), "idle"),
        (("up",), "forward"),
        (("up", "left"), "forward_left"),
        (("up", "right"), "forward_right"),
        (("up", "down"), "idle"),
        (("up", "down", "left"), "left"),
        (("left", "right", "up"), "forward"),
        (("down", "left"), "back"),
        (("nonsense",), "idle"),
    ],
)
def test_the_action_with_most_of_its_keys_held(held: tuple[str, ...], name: str) -> None:
    assert ACTIONS[choose_action(ACTIONS, held)].name == name


def test_a_world_without_an_idle_action_gets_its_first() -> None:
    assert choose_action((Action("gas", ("up",)), Action("brake", ("down",))), ()) == 0


@pytest.mark.parametrize(("key", "action"), [("w", 1), ("s", 2), ("a", 3), ("d", 4), ("up", 1), ("right", 4)])
def test_arrows_and_letters(key: str, action: int) -> None:
    keyboard = _keyboard()
    keyboard.press(key)
    assert keyboard.sample(ACTIONS) == action
    keyboard.release(key)
    assert keyboard.sample(ACTIONS) == 0


def test_a_key_is_held_until_every_key_of_it_is_up() -> None:
    keyboard = _keyboard()
    keyboard.press("w")
    keyboard.press("up")
    keyboard.release("w")
    assert keyboard.sample(ACTIONS) == FORWARD


def test_a_tap_between_two_samples_acts_once() -> None:
    keyboard = _keyboard()
    keyboard.press("left")
    keyboard.release("left")
    assert [keyboard.sample(ACTIONS), keyboard.sample(ACTIONS)] == [LEFT, 0]


def test_a_tap_beats_the_opposite_key_that_is_held() -> None:
    keyboard = _keyboard()
    keyboard.press("right")
    keyboard.sample(ACTIONS)
    keyboard.press("left")
    keyboard.release("left")
    assert [keyboard.sample(ACTIONS), keyboard.sample(ACTIONS)] == [LEFT, RIGHT]


def test_losing_the_focus_releases_everything() -> None:
    keyboard = _keyboard()
    for key in ("down", "r"):
        keyboard.press(key)
    assert keyboard.sample(ACTIONS) == BACK
    assert keyboard.held_commands() == {Command.REWIND}
    keyboard.release_all()
    assert keyboard.sample(ACTIONS) == 0
    assert not keyboard.held_commands()


def test_an_unplugged_device_lets_go_of_its_own_keys_only() -> None:
    keyboard = _keyboard()
    keyboard.press("up")
    keyboard.press_bound("stick left", "left", None, "pad 0")
    keyboard.press_bound("shoulder", None, Command.REWIND, "pad 0")
    assert ACTIONS[keyboard.sample(ACTIONS)].name == "forward_left"
    keyboard.release_all("pad 0")
    assert keyboard.sample(ACTIONS) == FORWARD
    assert not keyboard.held_commands()


def test_commands_come_once_with_their_key_and_repeats_do_not_count() -> None:
    keyboard = _keyboard()
    for key in ("p", "p", "7"):
        keyboard.press(key)
    assert keyboard.take_commands() == [(Command.PAUSE, "p"), (Command.SLOT, "7")]
    assert keyboard.take_commands() == []
    keyboard.release("p")
    keyboard.press("p")
    assert keyboard.take_commands() == [(Command.PAUSE, "p")]


def test_no_default_key_means_two_things() -> None:
    bindings = default_bindings((*ACTIONS, Action("use", ("e",)), Action("freeze", ("p",))))
    assert bindings.game["e"] == "e"
    assert not set(bindings.game) & set(bindings.commands)
    assert bindings.keys_of(Command.PAUSE) == ("pause",)
