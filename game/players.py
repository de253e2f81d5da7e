"""Who chooses the actions: a person, chance, a wanderer, a script or an earlier recording."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from world_model.types import Action, DataError, Image

MAX_SCRIPT_TICKS = 10_000_000

RESEED = "reseed"
"""The action of a twin that begins its dream again. Players that choose by chance never take it."""


class Player(Protocol):
    """Chooses the action of the next tick, from the last picture and what the person holds."""

    name: str

    def act(self, human: int, image: Image | None) -> int: ...


class Human:
    """The person at the keys."""

    name = "you"

    def act(self, human: int, image: Image | None) -> int:
        return human


class RandomPlayer:
    """Any action, held for 1 to 12 ticks. Deterministic by seed."""

    name = "random"

    def __init__(self, actions: Sequence[Action], seed: int = 0) -> None:
        self._rng = np.random.default_rng(seed)
        self._count, self._action, self._left = len(_moves(actions)), 0, 0

    def act(self, human: int, image: Image | None) -> int:
        if self._left == 0:
            self._action = int(self._rng.integers(self._count))
            self._left = int(self._rng.integers(1, 13))
        self._left -= 1
        return self._action


class Wanderer:
    """Goes forward, looks around now and then, and turns away when the picture stands still.

    Deterministic by seed and pictures. A world without an "up" action gets random ones instead.
    """

    name = "wander"
    STILL = 1.5
    """Mean difference of two pictures (0..255) below which nothing moves."""

    def __init__(self, actions: Sequence[Action], seed: int = 0) -> None:
        self._rng = np.random.default_rng(seed)
        keys = {frozenset(a.default_keys): i for i, a in reversed(list(enumerate(actions)))}
        turns = [keys[frozenset({k})] for k in ("left", "right") if frozenset({k}) in keys]
        curves = [keys[frozenset({"up", k})] for k in ("left", "right") if frozenset({"up", k}) in keys]
        ahead = keys.get(frozenset({"up"}))
        everything = _moves(actions)
        self._ahead = everything if ahead is None else [ahead]
        self._turns, self._curves = turns or everything, curves or self._ahead
        self._plan: list[int] = []
        self._last: NDArray[np.int16] | None = None
        self._stuck = 0

    def act(self, human: int, image: Image | None) -> int:
        self._look(image)
        if self._stuck >= 6:
            self._stuck = 0
            self._plan = self._hold(self._turns, 8, 30)
        if not self._plan:
            kind = self._rng.choice(3, p=(0.6, 0.3, 0.1))
            self._plan = (
                self._hold(self._ahead, 6, 40),
                self._hold(self._curves, 3, 14),
                self._hold(self._turns, 4, 40),
            )[kind]
        return self._plan.pop()

    def _hold(self, choices: list[int], low: int, high: int) -> list[int]:
        return [int(self._rng.choice(choices))] * int(self._rng.integers(low, high + 1))

    def _look(self, image: Image | None) -> None:
        if image is None:
            return
        small = image[::8, ::8].astype(np.int16)
        moved = self._last is None or float(np.abs(small - self._last).mean()) > self.STILL
        self._last, self._stuck = small, 0 if moved else self._stuck + 1


def _moves(actions: Sequence[Action]) -> list[int]:
    """Actions that act on the world itself. What is left out is the last one, so indices stay."""
    return [i for i, action in enumerate(actions) if action.name != RESEED]


class Listed:
    """Actions from a list, a script's or a recording's, one for each tick; then the person's own."""

    def __init__(self, name: str, actions: Sequence[int]) -> None:
        self.name, self._actions = name, actions
        self.tick = 0
        """The tick that comes next. A session sets it: whoever goes back in time goes back here too."""

    @property
    def done(self) -> bool:
        return self.tick >= len(self._actions)

    def act(self, human: int, image: Image | None) -> int:
        if self.done:
            return human
        self.tick += 1
        return int(self._actions[self.tick - 1])


def make_player(kind: str, actions: Sequence[Action], seed: int = 0) -> Player:
    """ "human", "random" or "wander". Raises ValueError for another name."""
    if kind == "human":
        return Human()
    if kind == "random":
        return RandomPlayer(actions, seed)
    if kind == "wander":
        return Wanderer(actions, seed)
    raise ValueError(f"unknown player {kind!r}; there are: human, random, wander")


def player_for(policy: str, actions: Sequence[Action], seed: int = 0) -> Player:
    """A player by name, or one that follows the script at the path `policy`, then stands still."""
    if policy in ("random", "wander"):
        return make_player(policy, actions, seed)
    if not Path(policy).is_file():
        raise DataError(f"{policy!r} is neither random nor wander nor a script that exists")
    return Listed("script", read_script(Path(policy), actions))


def read_script(path: Path, actions: Sequence[Action]) -> list[int]:
    """A text of one action name per line with an optional count ("forward 20"); # begins a comment.

    Raises DataError that names the line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as err:
        raise DataError(
            f"{path}: the script cannot be read: {getattr(err, 'strerror', None) or err}"
        ) from err
    return list(_parse(path, text, {action.name: i for i, action in enumerate(actions)}))


def _parse(path: Path, text: str, names: dict[str, int]) -> Iterator[int]:
    total = 0
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        count = words[1] if len(words) > 1 else "1"
        if words[0] not in names:
            raise DataError(f"{path}, line {number}: no action {words[0]!r}; there are: {', '.join(names)}")
        if len(words) > 2 or not count.isascii() or not count.isdigit() or len(count) > 9:
            raise DataError(f"{path}, line {number}: expected an action and a count, as in 'forward 20'")
        total += int(count)
        if total > MAX_SCRIPT_TICKS:
            raise DataError(f"{path}, line {number}: the script is longer than {MAX_SCRIPT_TICKS:,} ticks")
        yield from (names[words[0]] for _ in range(int(count)))
