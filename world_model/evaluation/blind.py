"""A player who does not look: the same in the dream and in the game, from the same starts.

Recorded actions are aimed at monsters of the game, which stand elsewhere in a dream. A script that aims at
nothing is as fair to both: how often it hits, and how often it is hit, says how the fight goes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from world_model.data.sources import Observation, Source
from world_model.evaluation.metrics import change
from world_model.evaluation.protocol import Clip, Dreamer, Ints, batched, dream
from world_model.evaluation.real import SAME_LEVELS
from world_model.evaluation.scenery import Scenery, Stretch
from world_model.types import DataError

MOVES = ("left", "right", "shoot", "shoot_left", "shoot_right", "strafe_left", "strafe_right")


def script(names: Sequence[str], ticks: int, seed: int) -> Ints:
    """(ticks,): turns slowly, shoots in bursts, steps aside. `names` are those of the actions.

    Raises DataError for a game in which that cannot be done.
    """
    if not set(MOVES) <= set(names):
        raise DataError(f"a blind player needs {', '.join(MOVES)}; there are {', '.join(names)}")
    rng = np.random.default_rng(seed)
    keys: list[str] = []
    side = "left"
    while len(keys) < ticks:
        if rng.random() < 0.15:
            side = "right" if side == "left" else "left"
        for _ in range(int(rng.integers(1, 4))):  # a burst, and a little further
            keys += ["shoot"] * int(rng.integers(5, 12)) + [f"shoot_{side}"] * int(rng.integers(1, 3))
        keys += [side] * int(rng.integers(2, 6))
        if rng.random() < 0.3:
            keys += [f"strafe_{('left', 'right')[int(rng.integers(2))]}"] * int(rng.integers(4, 10))
    return np.array([names.index(key) for key in keys[:ticks]], np.int64)


def scripts(names: Sequence[str], clips: Sequence[Clip]) -> Ints:
    """One for each clip, (clips, ticks)."""
    return np.stack([script(names, clip.ticks, seed) for seed, clip in enumerate(clips)])


def dreamed(
    dreamer: Dreamer, clips: Sequence[Clip], acts: Ints, scenery: Scenery, batch: int = 16
) -> list[Stretch]:
    """The clips gone on with under actions (clips, ticks)."""
    found: list[Stretch] = []
    for group in batched(clips, batch):
        stretches = [Stretch(scenery) for _ in group]
        for images in dream(dreamer, group, acts[len(found) : len(found) + len(group)]):
            for stretch, image in zip(stretches, images, strict=True):
                stretch.take(image)
        found += stretches
    return found


def played(
    game: Source, clips: Sequence[Clip], acts: Ints, scenery: Scenery
) -> list[tuple[Stretch, NDArray[np.int32]]]:
    """The same in the real game, with its variables (ticks + 1, V), up to where the player dies.

    Raises DataError where the game tells no variables, or does not arrive at the recorded frame.
    """
    return [_played(game, clip, row, scenery) for clip, row in zip(clips, acts, strict=True)]


def _played(game: Source, clip: Clip, acts: Ints, scenery: Scenery) -> tuple[Stretch, NDArray[np.int32]]:
    obs = _arrive(game, clip)
    stretch, numbers = Stretch(scenery), []
    for action in (*acts.tolist(), None):
        if obs.variables is None:
            raise DataError(f"{game.name} tells no game variables")
        numbers.append(obs.variables)
        if obs.terminated:
            break  # its picture is a copy; its numbers are new
        stretch.take(obs.image)
        obs = obs if action is None else game.step(action)
    return stretch, np.stack(numbers[: clip.ticks + 1])


def _arrive(game: Source, clip: Clip) -> Observation:
    """Plays the recording up to the clip's last context frame."""
    if clip.seed is None or clip.history is None:
        raise DataError(f"{clip.episode} has no seed, so the game cannot be played from there")
    obs = game.reset(clip.seed)
    for action in (*clip.history, *clip.actions[: clip.context - 1]):
        obs = game.step(int(action))
    if obs.image.shape != clip.real(0).shape or change(obs.image, clip.real(0)) > SAME_LEVELS:
        raise DataError(f"{game.name} does not arrive at the recorded frame of {clip.episode}")
    return obs
