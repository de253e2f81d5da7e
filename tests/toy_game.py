"""A toy game for the evaluation: a panorama to turn in, exactly known, and dreamers of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from world_model.data.episodes import Episode, write_episode
from world_model.data.sources import Observation
from world_model.evaluation.protocol import Images, Ints
from world_model.types import Action

HEIGHT, WIDTH = 40, 64
NAMES = ("idle", "forward", "back", "left", "right", "forward_left", "forward_right")
TURN = {3: 2, 4: -2, 5: 2, 6: -2}
"""Columns of the panorama by which an action moves the picture to the right."""
ROUND = 160
"""Columns all around: 80 ticks of left."""


def panorama() -> NDArray[np.uint8]:
    """All that there is to see: eight coloured walls with texture, (HEIGHT, ROUND, 3)."""
    rng = np.random.default_rng(0)
    walls = np.kron(rng.integers(30, 226, (2, 8, 3)), np.ones((HEIGHT // 2, ROUND // 8, 1)))
    return np.clip(walls + rng.normal(0, 12, walls.shape), 0, 255).astype(np.uint8)


SEEN = panorama()


def view(angle: int, step: int) -> NDArray[np.uint8]:
    """The picture at a heading (columns, counter-clockwise) after `step` units forward, which light it."""
    columns = (np.arange(WIDTH) - angle) % ROUND
    return np.asarray(SEEN[:, columns] * (0.6 + 0.4 * (step % 24) / 24), np.uint8)


PLACES = {view(a, s).tobytes(): (a, s) for a in range(0, ROUND, 2) for s in range(0, 24, 2)}


def apply(angle: int, step: int, action: int) -> tuple[int, int]:
    walk = 2 if action in (1, 5, 6) else -2 if action == 2 else 0
    return angle + TURN.get(action, 0), step + walk


def start_of(seed: int) -> tuple[int, int]:
    return seed * 10 % ROUND, 0


class Perfect:
    """Plays the toy game itself: finds out where it is from the last context frame."""

    name = "perfect"

    def reset(self, obs: NDArray[np.uint8], act: Ints, phase: Ints) -> Images:
        self._at = [PLACES[frame.tobytes()] for frame in obs[:, -1]]
        return self._show()

    def step(self, act: Ints) -> Images:
        self._at = [apply(*at, int(a)) for at, a in zip(self._at, act, strict=True)]
        return self._show()

    def context_predictions(self, obs: NDArray[np.uint8], act: Ints, phase: Ints) -> NDArray[np.uint8]:
        return obs[:, 1:].copy()

    def _show(self) -> Images:
        return np.stack([view(*at) for at in self._at])


class Deaf(Perfect):
    """Hears no action: always turns left."""

    name = "deaf"

    def step(self, act: Ints) -> Images:
        return super().step(np.full_like(act, 3))


class ToySource:
    """Turns and steps exactly; going back undoes going forward."""

    name, fps, licence, phases = "toy", 25, "none", 1
    actions = tuple(Action(name) for name in NAMES)

    def reset(self, seed: int) -> Observation:
        self._at = start_of(seed)
        return self._see()

    def step(self, action: int) -> Observation:
        self._at = apply(*self._at, action)
        return self._see()

    def close(self) -> None: ...

    def _see(self) -> Observation:
        angle, step = self._at
        return Observation(view(angle, step), np.array([step, 0, 2 * np.pi * angle / ROUND], np.float32))


def toy_episode(seed: int, ticks: int = 200, still: bool = False) -> Episode:
    rng = np.random.default_rng(seed)
    actions = np.repeat(rng.choice([1, 2, 3, 4, 5, 6], ticks // 5), 5).astype(np.int16)
    actions[:90] = 3  # a look around, which the rule's false alarms are counted on
    if still:
        actions[:] = 0
    states = [start_of(seed)]
    for action in actions:
        states.append(apply(*states[-1], int(action)))
    return Episode(
        header={"source": "toy", "actions": list(NAMES), "fps": 25, "seed": seed},
        frames=np.stack([view(*s) for s in states]),
        actions=actions,
        phases=(np.arange(ticks) % 5).astype(np.uint8),
        pose=np.array([(s, 0, 2 * np.pi * a / ROUND) for a, s in states], np.float32),
        sound=None,
        rewards=np.zeros(ticks, np.float32),
    )


class Broken(Perfect):
    """Returns something that is no picture."""

    def __init__(self, how: str) -> None:
        self._how = how

    def _show(self) -> Any:
        images = super()._show()
        if self._how == "nan":
            return np.full(images.shape, np.nan, np.float32)
        return images.astype(np.float32) if self._how == "float" else images[:, :-1]


def toy_data(folder: Path, splits: tuple[str, ...] = ("val",)) -> Path:
    """Three held-out episodes, and three for training where asked for."""
    for split in splits:
        for seed in (1, 2, 3):
            seed += 10 * (split == "train")
            write_episode(folder / split / f"ep_{seed:03d}", toy_episode(seed))
    return folder
