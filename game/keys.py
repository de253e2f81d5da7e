"""From keys to actions. Pure logic: key names come in, an action's index comes out.

A physical key ("w", "up", "return") is bound to a game key (a name in `Action.default_keys`: "up") or to
a command ("pause"). Names are those of SDL in lower case.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from world_model.types import Action

OPPOSITES = (("up", "down"), ("left", "right"))


class Command(StrEnum):
    """What a key can ask of the player besides an action of the world."""

    QUIT = "quit"
    RESTART = "restart"
    PAUSE = "pause"
    ADVANCE = "advance"
    SLOWER = "slower"
    FASTER = "faster"
    REWIND = "rewind"
    FAST_FORWARD = "fast_forward"
    SAVE = "save"
    LOAD = "load"
    SLOT = "slot"
    PLAYER = "player"
    VIDEO = "video"
    CLIP = "clip"
    HELP = "help"
    HUD = "hud"
    MEMORY = "memory"
    SCALING = "scaling"
    FULLSCREEN = "fullscreen"
    SCREENSHOT = "screenshot"
    PICKER = "picker"
    TWIN = "twin"
    RESEED = "reseed"
    MUTE = "mute"
    LOUDER = "louder"
    QUIETER = "quieter"


HELD = frozenset({Command.REWIND, Command.FAST_FORWARD})
"""Commands that act as long as their key is down."""

DEFAULT_GAME_KEYS: dict[str, tuple[str, ...]] = {
    "up": ("up", "w"),
    "down": ("down", "s"),
    "left": ("left", "a"),
    "right": ("right", "d"),
    "space": ("space",),
    "left ctrl": ("left ctrl",),
    "left shift": ("left shift",),
}

DEFAULT_COMMANDS: dict[Command, tuple[str, ...]] = {
    Command.QUIT: ("escape",),
    Command.RESTART: ("return", "enter"),
    Command.PAUSE: ("p", "pause"),
    Command.ADVANCE: (".", "n"),
    Command.SLOWER: ("-",),
    Command.FASTER: ("=", "+"),
    Command.REWIND: ("backspace", "r"),
    Command.FAST_FORWARD: ("f",),
    Command.SAVE: ("f5",),
    Command.LOAD: ("f9",),
    Command.SLOT: tuple("0123456789"),
    Command.PLAYER: ("t",),
    Command.VIDEO: ("v",),
    Command.CLIP: ("f6",),
    Command.HELP: ("h", "f1"),
    Command.HUD: ("f2",),
    Command.MEMORY: ("m",),
    Command.SCALING: ("f3",),
    Command.FULLSCREEN: ("f11",),
    Command.SCREENSHOT: ("f12",),
    Command.PICKER: ("f4",),
    Command.TWIN: ("f7",),
    Command.RESEED: ("f8",),
    Command.MUTE: ("u",),
    Command.LOUDER: ("page up",),
    Command.QUIETER: ("page down",),
}


@dataclass(frozen=True)
class Bindings:
    """Physical key -> game key, and physical key -> command."""

    game: dict[str, str]
    commands: dict[str, Command]

    def keys_of(self, command: Command) -> tuple[str, ...]:
        """The keys of a command, in the order in which they were bound."""
        return tuple(key for key, bound in self.commands.items() if bound == command)


def default_bindings(actions: Sequence[Action] = ()) -> Bindings:
    """Arrows and WASD, the commands, and every other key that the world's own actions name."""
    game = {key: name for name, keys in DEFAULT_GAME_KEYS.items() for key in keys}
    for name in (name for action in actions for name in action.default_keys):
        game.setdefault(name, name)
    commands = {key: c for c, keys in DEFAULT_COMMANDS.items() for key in keys if key not in game}
    return Bindings(game, commands)


def choose_action(actions: Sequence[Action], held: Iterable[str]) -> int:
    """Of the actions whose keys are all held, the one with most keys; the first of equals.

    Opposite keys cancel. Without a match it is action 0.
    """
    down = set(held)
    for one, other in OPPOSITES:
        if one in down and other in down:
            down -= {one, other}
    fitting = [i for i, action in enumerate(actions) if down.issuperset(action.default_keys)]
    return max(fitting, key=lambda i: (len(actions[i].default_keys), -i), default=0)


@dataclass
class Keyboard:
    """Which keys are down now, and which were tapped since the last sample.

    The same game key may be held by several devices or keys at once: it is up when all let go of it.
    """

    bindings: Bindings
    _down: dict[tuple[str, str], str] = field(default_factory=dict)
    _tapped: set[str] = field(default_factory=set)
    _commands: list[tuple[Command, str]] = field(default_factory=list)
    _held_commands: Counter[Command] = field(default_factory=Counter)
    _command_keys: dict[tuple[str, str], Command] = field(default_factory=dict)

    def press(self, key: str, device: str = "keyboard") -> None:
        """A key went down. Repeats of a key that is down already are ignored."""
        self.press_bound(key, self.bindings.game.get(key), self.bindings.commands.get(key), device)

    def press_bound(self, key: str, game: str | None, command: Command | None, device: str) -> None:
        """A key of a device with bindings of its own (a game pad) went down."""
        at = (device, key)
        if at in self._down or at in self._command_keys:
            return
        if game is not None:
            self._down[at] = game
            self._tapped.add(game)
        elif command is not None:
            self._command_keys[at] = command
            self._held_commands[command] += 1
            self._commands.append((command, key))

    def ask(self, command: Command) -> None:
        """A command that came from elsewhere, as from the window's close button."""
        self._commands.append((command, ""))

    def release(self, key: str, device: str = "keyboard") -> None:
        """A key went up."""
        self._down.pop((device, key), None)
        command = self._command_keys.pop((device, key), None)
        if command is not None:
            self._held_commands[command] -= 1

    def release_all(self, device: str | None = None) -> None:
        """The window lost the focus, or a device was unplugged: nothing of it is held any more."""
        for source, key in [*self._down, *self._command_keys]:
            if device in (None, source):
                self.release(key, source)
        if device is None:
            self._tapped.clear()

    def sample(self, actions: Sequence[Action]) -> int:
        """The action of this tick. A tap that began and ended since the last sample counts once."""
        held = set(self._down.values())
        tapped, self._tapped = self._tapped - held, set()
        for one, other in OPPOSITES:  # a new tap beats a key that is held against it
            for new, old in ((one, other), (other, one)):
                if new in tapped and old in held:
                    held.discard(old)
        return choose_action(actions, held | tapped)

    def take_commands(self) -> list[tuple[Command, str]]:
        """Commands pressed since the last call, with the keys that gave them."""
        taken, self._commands = self._commands, []
        return taken

    def take_taps(self) -> list[str]:
        """Game keys pressed since the last sample, for menus."""
        taken, self._tapped = sorted(self._tapped), set()
        return taken

    def held_commands(self) -> frozenset[Command]:
        """Commands of `HELD` whose key is down."""
        return frozenset(c for c in HELD if self._held_commands[c] > 0)


@dataclass(frozen=True)
class Input:
    """What the player asked for in one tick."""

    action: int = 0
    commands: tuple[tuple[Command, str], ...] = ()
    """Commands pressed since the last tick, each with the key that gave it."""
    held: frozenset[Command] = frozenset()
    """Commands of `HELD` whose key is down."""

    def asks(self, command: Command) -> bool:
        return any(c == command for c, _ in self.commands)
