"""Clips of sound for training, chosen by what happens in them: onsets first, loud ticks next."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from world_model.audio import CHANNELS, FULL_SCALE, RANGE_DB, to_level
from world_model.config import AudioConfig
from world_model.data.episodes import Episode
from world_model.types import DataError

ONSET_DB = 6.0
"""A tick that is so much louder than the one before is an onset."""
HEARD = 0.2
"""Level from which a tick counts as sounding: 58 dB below full scale."""
ONSET_WEIGHT = 4.0


@dataclass(frozen=True)
class SoundBatch:
    """sound (B, T, S, C) in units of int16, before (B, overlap, C), onset (B, T) bool."""

    sound: Tensor
    before: Tensor
    onset: Tensor

    def to(self, device: torch.device) -> SoundBatch:
        return SoundBatch(self.sound.to(device), self.before.to(device), self.onset.to(device))


class SoundSampler:
    """Random stretches of ticks, most of them around something that sounds. Raises DataError for none."""

    def __init__(self, episodes: list[Episode], config: AudioConfig) -> None:
        self._config, self._episodes = config, episodes
        self.levels = [_levels(e, config) for e in episodes]
        self._weights = [_weights(level) for level in self.levels]
        if not sum(map(len, self.levels)):
            raise DataError("the episodes have no sound; collect them with a source that has")

    def places(self, rng: np.random.Generator, batch: int, ticks: int) -> list[tuple[int, int]]:
        """(episode, first tick) of clips of `ticks` transitions, from episodes that have as many."""
        totals = np.array([w.sum() * (len(w) >= ticks) for w in self._weights])
        if not totals.any():
            raise DataError(f"no episode with sound has {ticks} ticks; collect longer ones")
        found = []
        for i in rng.choice(len(totals), batch, p=totals / totals.sum()):
            weights = self._weights[i]
            tick = int(rng.choice(len(weights), p=weights / weights.sum()))
            last = len(weights) - ticks
            found.append((int(i), int(np.clip(tick - rng.integers(0, ticks), 0, last))))
        return found

    def cut(self, places: list[tuple[int, int]], ticks: int) -> SoundBatch:
        """The sound of these clips."""
        c = self._config
        sound = np.zeros((len(places), ticks, c.samples, CHANNELS), np.float32)
        before = np.zeros((len(places), c.overlap, CHANNELS), np.float32)
        onset = np.zeros((len(places), ticks), bool)
        for row, (i, start) in enumerate(places):
            whole = self._episodes[i].sound
            assert whole is not None
            part = whole[start : start + ticks]
            sound[row, : len(part)] = part
            onset[row, : len(part)] = onsets(self.levels[i])[start : start + ticks]
            if start:
                before[row] = whole[start - 1, -c.overlap :]
        return SoundBatch(torch.from_numpy(sound), torch.from_numpy(before), torch.from_numpy(onset))


def onsets(level_T: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Ticks (T,) at which something begins: heard, and much louder than the tick before."""
    before = np.maximum(np.concatenate(([0], level_T[:-1])), HEARD - ONSET_DB / RANGE_DB)
    return (level_T >= HEARD) & (level_T - before > ONSET_DB / RANGE_DB)


def _levels(episode: Episode, config: AudioConfig) -> NDArray[np.float32]:
    """Level (T,) of each tick; empty without sound. Raises DataError for sound of another rate."""
    sound = episode.sound
    if sound is None:
        return np.zeros(0, np.float32)
    if sound.shape[1:] != (config.samples, CHANNELS):
        raise DataError(
            f"an episode has sound of {sound.shape[1:]} a tick, the world of {(config.samples, CHANNELS)}; "
            "collect the data set again, or name its rate in the run's world.json"
        )
    parts = np.array_split(sound, len(sound) // 256 + 1)
    rms = [np.sqrt((p.astype(np.float32) ** 2).mean((1, 2))) / FULL_SCALE for p in parts]
    return to_level(torch.from_numpy(np.concatenate(rms))).numpy()


def _weights(level: NDArray[np.float32]) -> NDArray[np.float64]:
    return (0.02 + level + ONSET_WEIGHT * onsets(level)).astype(np.float64)
