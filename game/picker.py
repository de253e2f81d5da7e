"""Choosing a world and a start from cards with pictures, by keys or mouse. Knows no pygame."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from game.clock import Clock

MAX_COLUMNS = 4


@dataclass(frozen=True)
class Card:
    """Something to choose: what it is called, a word about it, and a PNG if there is one."""

    name: str
    about: str = ""
    picture: Path | None = None


class Menu(Protocol):
    """A front end that can show cards."""

    def menu_keys(self) -> list[str]: ...
    def draw_cards(self, title: str, cards: Sequence[Card], chosen: int, columns: int) -> None: ...
    def flip(self) -> None: ...


def columns_for(count: int) -> int:
    """Cards beside each other: all of a few, else a grid whose last row is as full as can be."""
    if count <= MAX_COLUMNS:
        return count
    return min((MAX_COLUMNS, MAX_COLUMNS - 1), key=lambda columns: -count % columns)


def move(chosen: int, key: str, count: int, columns: int) -> int:
    """The card that a key leads to; at an edge it stays."""
    step = {
        "left": -1,
        "a": -1,
        "right": 1,
        "d": 1,
        "up": -columns,
        "w": -columns,
        "down": columns,
        "s": columns,
    }
    target = chosen + step.get(key, 0)
    return target if 0 <= target < count else chosen


def pick(menu: Menu, clock: Clock, title: str, cards: Sequence[Card]) -> int | None:
    """The chosen card's index, or None where the person leaves. Asks nothing where there is one card."""
    if len(cards) < 2:
        return 0 if cards else None
    chosen, columns = 0, columns_for(len(cards))
    while True:
        clock.wait()
        for key in menu.menu_keys():
            if key == "escape":
                return None
            if key in ("return", "enter", "space"):
                return chosen
            if key.startswith("click "):
                return int(key.removeprefix("click "))
            chosen = move(chosen, key, len(cards), columns)
        menu.draw_cards(title, cards, chosen, columns)
        menu.flip()


def world_cards(worlds: dict[str, Path]) -> list[Card]:
    """A card for each installed world."""
    return [Card(name, "", _existing(folder / "thumbnail.png")) for name, folder in worlds.items()]


def scene_cards(folder: Path) -> list[Card]:
    """A card for "anywhere", and for each named start of a world."""
    scenes = sorted(path.stem for path in (folder / "scenes").glob("*.safetensors"))
    anywhere = Card("anywhere", "chosen by the seed", _existing(folder / "thumbnail.png"))
    return [anywhere, *(Card(name, "", _existing(folder / "scenes" / f"{name}.png")) for name in scenes)]


def pick_start(
    menu: Menu, clock: Clock, worlds: Callable[[], dict[str, Path]]
) -> tuple[str, str | None] | None:
    """A world and a scene of it (None: chosen by the seed); None where the person leaves."""
    found = worlds()
    names = list(found)
    world = pick(menu, clock, "Where to?", world_cards(found))
    if world is None:
        return None
    cards = scene_cards(found[names[world]])
    scene = pick(menu, clock, names[world], cards)
    if scene is None:
        return None
    return names[world], None if scene == 0 else cards[scene].name


def _existing(path: Path) -> Path | None:
    return path if path.is_file() else None
