"""The probes of protocol `events`, trained on real training episodes: what reads numbers and counts kills."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from world_model.data.episodes import Episode
from world_model.evaluation import events
from world_model.evaluation.digits import DigitReader, train_reader
from world_model.evaluation.kills import KillProbe, small_views, train_kill_probe
from world_model.evaluation.scenery import KILLS, Scenery, alive
from world_model.evaluation.windows import held_out
from world_model.types import DataError

TRAINING_STRIDE = 8
"""Of the training frames, every so many are looked at for digits."""
KILL_FRAMES = 30_000
"""Of the training episodes, as many as have so many frames teach what a kill looks like."""
STEPS = (600, 1000)
"""For digits and for kills."""


@dataclass(frozen=True)
class Probes:
    """What reads numbers and counts kills."""

    reader: DigitReader
    kills: KillProbe


def train_probes(root: Path, scenery: Scenery, seed: int = 0, steps: tuple[int, int] = STEPS) -> Probes:
    """Both probes, on those episodes of the training split of `root` that tell the game's variables.

    Raises DataError when none does.
    """
    needed = {*scenery.fields, KILLS}
    fit = [e for e in alive(held_out(root, "train")).episodes if needed <= _variables(e)]
    if not fit:
        raise DataError(f"{root}: no training episode tells {', '.join(sorted(needed))}")
    pictures, boxes, values = [], [], []
    for episode in fit:
        assert episode.variables is not None
        names = episode.header["variables"]
        # The status bar of a picture shows what the variables were some ticks before.
        frames = np.asarray(episode.frames[scenery.late :: TRAINING_STRIDE])
        numbers = np.asarray(episode.variables[: len(episode.variables) - scenery.late : TRAINING_STRIDE])
        for name, box in scenery.fields.items():
            pictures.append(events.crop(frames, box))
            boxes.append((0, 0, box[2], box[3]))
            values.append(numbers[:, names.index(name)].astype(np.int64))
    reader = train_reader(pictures, boxes, values, steps[0], seed)
    return Probes(reader, train_kill_probe(_stretches(fit), steps[1], seed))


def _stretches(episodes: list[Episode]) -> list[tuple[Tensor, np.ndarray]]:
    """Episodes as small views with their kill counts, as many as KILL_FRAMES allow."""
    found, frames = [], 0
    for episode in episodes:
        if frames >= KILL_FRAMES:
            break
        assert episode.variables is not None
        column = episode.header["variables"].index(KILLS)
        pieces = np.array_split(episode.frames, max(1, len(episode.frames) // 150))
        found.append((torch.cat([small_views(p) for p in pieces]), np.asarray(episode.variables[:, column])))
        frames += len(episode.frames)
    return found


def _variables(episode: Episode) -> set[str]:
    return set() if episode.variables is None else set(episode.header.get("variables", ()))
