"""What the HUD and the help say: figures, badges, the names of keys."""

from __future__ import annotations

from game.budget import Level
from game.keys import Bindings, Command
from game.loop import HudState
from game.paint import ACCENT, BAD, GOOD, MUTED, TEXT, Part
from world_model.types import FPS, Action

MEANINGS: dict[Command, str] = {
    Command.RESTART: "start anew, next seed",
    Command.PAUSE: "pause",
    Command.ADVANCE: "one tick further",
    Command.REWIND: "rewind, while held",
    Command.FAST_FORWARD: "fast forward, while held",
    Command.SLOWER: "slower",
    Command.FASTER: "faster",
    Command.SAVE: "save in the slot",
    Command.LOAD: "load the slot",
    Command.SLOT: "choose a slot",
    Command.PLAYER: "who plays",
    Command.VIDEO: "film",
    Command.CLIP: "keep the last 30 s",
    Command.SCREENSHOT: "screenshot",
    Command.MUTE: "mute",
    Command.LOUDER: "louder",
    Command.QUIETER: "quieter",
    Command.MEMORY: "show the memory",
    Command.HUD: "show figures",
    Command.SCALING: "smooth or sharp pixels",
    Command.FULLSCREEN: "fullscreen",
    Command.PICKER: "choose a world",
    Command.TWIN: "the real game beside it",
    Command.RESEED: "twin: dream on from the real game",
    Command.HELP: "this help",
    Command.QUIT: "leave",
}
SHORT = {
    "up": "Up",
    "down": "Down",
    "left": "Left",
    "right": "Right",
    "escape": "Esc",
    "return": "Enter",
    "backspace": "Backspace",
    "pause": "Pause",
}
"""Names of keys as they stand on them."""
LEAST_MS = 0.05
"""Sections that take less are not worth a place."""


def help_columns(
    actions: tuple[Action, ...], bindings: Bindings
) -> tuple[tuple[tuple[str, str], ...], tuple[tuple[str, str], ...]]:
    """(key, meaning) of the world's actions and of the commands, in two columns of about equal length."""
    moves = []
    for action in actions:
        if len(action.default_keys) == 1:
            keys = [k for k, name in bindings.game.items() if name == action.default_keys[0]]
            moves.append(("  ".join(_key_name(k) for k in keys), action.name.replace("_", " ")))
    rows = moves + [(_key_names(bindings.keys_of(c)), meaning) for c, meaning in MEANINGS.items()]
    rows = [row for row in rows if row[0]]
    half = (len(rows) + 1) // 2
    return tuple(rows[:half]), tuple(rows[half:])


def _key_names(keys: tuple[str, ...]) -> str:
    if len(keys) > 4:
        return f"{keys[0]} .. {keys[-1]}"
    # The second Enter key needs no mention.
    return "  ".join(_key_name(k) for k in keys if k != "enter" or "return" not in keys)


def _key_name(key: str) -> str:
    return SHORT.get(key, key.upper() if len(key) < 4 else key.title())


def figures(state: HudState) -> tuple[tuple[int, tuple[Part, ...]], ...]:
    """Groups of figures, what matters most first."""
    work = state.work or {"p50": 0.0, "p95": 0.0, "p99": 0.0}
    slow = work["p99"] > 1000 / FPS
    pace: tuple[Part, ...] = (
        (state.world, ACCENT),
        (f"{state.fps:.1f} fps", GOOD if state.fps > FPS - 1 else TEXT),
        (f"{work['p50']:.1f} ms", TEXT),
        (f"p95 {work['p95']:.1f}   p99 {work['p99']:.1f}", BAD if slow else MUTED),
        *(((state.status, TEXT),) if state.status else ()),
    )
    health: tuple[Part, ...] = (
        (f"missed {state.missed}", MUTED),
        (f"longest stall {state.longest_stall:.0f} ms", MUTED),
        (f"key to picture < {state.latency:.0f} ms", MUTED),
        *(((f"{state.memory:.0f} MB", MUTED),) if state.memory else ()),
    )
    parts = [f"{name} {ms:.1f}" for name, ms in state.parts.items() if ms >= LEAST_MS]
    if not parts:
        return (20, pace), (18, health)
    return (20, pace), (18, health), (18, tuple((text, MUTED) for text in [*parts[:-1], f"{parts[-1]} ms"]))


def badges(state: HudState) -> tuple[Part, ...]:
    """What is out of the ordinary now."""
    badges: list[Part] = []
    if state.filming:
        badges.append(("filming", BAD))
    if state.over:
        badges.append(("it is over", BAD))
    if state.player != "you":
        badges.append((f"{state.player} plays", MUTED))
    if state.recall_left:
        badges.append((f"dreaming the way back: {state.recall_left} ticks", ACCENT))
    elif state.mode != "playing":
        badges.append((state.mode, ACCENT))
    if state.speed != 1:
        badges.append((f"{100 * state.speed:g} % speed", ACCENT))
    if state.level == Level.HALF_PICTURES:
        badges.append(("every second picture", MUTED))
    if state.slowed < 0.99:
        badges.append((f"slow motion {100 * state.slowed:.0f} %: this machine is busy", BAD))
    return tuple(badges)


def age(ticks: int) -> str:
    """How long ago."""
    seconds = ticks / FPS
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
