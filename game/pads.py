"""Game pads: plugged in at any time, mapped to the same game keys and commands. Uses pygame."""

from __future__ import annotations

import pygame
from pygame._sdl2 import controller

from game.keys import Command, Keyboard

GAME_BUTTONS = {
    pygame.CONTROLLER_BUTTON_DPAD_UP: "up",
    pygame.CONTROLLER_BUTTON_DPAD_DOWN: "down",
    pygame.CONTROLLER_BUTTON_DPAD_LEFT: "left",
    pygame.CONTROLLER_BUTTON_DPAD_RIGHT: "right",
    pygame.CONTROLLER_BUTTON_A: "space",
}
COMMAND_BUTTONS = {
    pygame.CONTROLLER_BUTTON_START: Command.PAUSE,
    pygame.CONTROLLER_BUTTON_BACK: Command.RESTART,
    pygame.CONTROLLER_BUTTON_LEFTSHOULDER: Command.REWIND,
    pygame.CONTROLLER_BUTTON_RIGHTSHOULDER: Command.FAST_FORWARD,
    pygame.CONTROLLER_BUTTON_X: Command.MEMORY,
    pygame.CONTROLLER_BUTTON_Y: Command.PLAYER,
}
STICK = {
    pygame.CONTROLLER_AXIS_LEFTX: ("left", "right"),
    pygame.CONTROLLER_AXIS_LEFTY: ("up", "down"),
}
ON, OFF = 0.5, 0.4
"""A stick acts beyond half of its way, and lets go a little before: it must not flutter."""
FULL = 32768


class Pads:
    """Turns a pad's events into presses and releases on a `Keyboard`; each pad is a device of its own."""

    def __init__(self, keyboard: Keyboard) -> None:
        self._keyboard = keyboard
        self._open: dict[int, controller.Controller] = {}
        controller.init()

    def handle(self, event: pygame.event.Event) -> None:
        """Any event; those of other devices are ignored."""
        if event.type == pygame.CONTROLLERDEVICEADDED:
            pad = controller.Controller(event.device_index)
            self._open[pad.as_joystick().get_instance_id()] = pad
        elif event.type == pygame.CONTROLLERDEVICEREMOVED:
            self._keyboard.release_all(_name(event))
            self._open.pop(event.instance_id, None)
        elif event.type == pygame.CONTROLLERBUTTONDOWN:
            game, command = GAME_BUTTONS.get(event.button), COMMAND_BUTTONS.get(event.button)
            self._keyboard.press_bound(f"button {event.button}", game, command, _name(event))
        elif event.type == pygame.CONTROLLERBUTTONUP:
            self._keyboard.release(f"button {event.button}", _name(event))
        elif event.type == pygame.CONTROLLERAXISMOTION and event.axis in STICK:
            self._stick(_name(event), event.axis, event.value / FULL)

    def _stick(self, device: str, axis: int, value: float) -> None:
        for key, amount in zip(STICK[axis], (-value, value), strict=True):
            if amount > ON:
                self._keyboard.press_bound(f"stick {key}", key, None, device)
            elif amount < OFF:
                self._keyboard.release(f"stick {key}", device)


def _name(event: pygame.event.Event) -> str:
    return f"pad {event.instance_id}"
