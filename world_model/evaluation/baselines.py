"""Dreamers that know nothing, and dreamers broken on purpose.

The first set a floor that a world must beat; the second are what the collapse rule must catch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from world_model.evaluation.protocol import Clip, Dreamer, Images, Ints, context_of


class CopySeed:
    """Holds the last real frame. One tick ahead this is persistence: the previous real frame."""

    name = "copy-seed"

    def reset(self, obs: NDArray[np.uint8], act: Ints, phase: Ints) -> Images:
        self._frame = obs[:, -1].copy()
        return self._frame.copy()

    def step(self, act: Ints) -> Images:
        return self._frame.copy()

    def context_predictions(self, obs: NDArray[np.uint8], act: Ints, phase: Ints) -> NDArray[np.uint8]:
        return obs[:, :-1].copy()


class Persistence(CopySeed):
    """Shows the real frame of the tick before, which no dream can know: a reference, not a rival.

    It needs the real frames that come, so it works on recorded clips (`reset_clips`), and only while the
    recorded actions are fed: from the first other action on it holds the last frame.
    """

    name = "persistence"

    def reset(self, obs: NDArray[np.uint8], act: Ints, phase: Ints) -> Images:
        self._clips: list[Clip] = []
        self._tick = 0
        return super().reset(obs, act, phase)

    def reset_clips(self, clips: Sequence[Clip]) -> Images:
        first = self.reset(*context_of(clips))
        self._clips, self._follows = list(clips), [True] * len(clips)
        return first

    def step(self, act: Ints) -> Images:
        for b, clip in enumerate(self._clips):
            self._follows[b] &= self._tick < clip.ticks and int(act[b]) == int(clip.future[self._tick])
            if self._follows[b]:
                self._frame[b] = clip.real(self._tick)
        self._tick += 1
        return self._frame.copy()


class MeanFrame(CopySeed):
    """Always shows one picture: the mean of frames given at the start, or else of the context."""

    name = "mean-frame"

    def __init__(self, frames: NDArray[np.uint8] | None = None) -> None:
        self._mean = None if frames is None else _mean(frames[None])

    def reset(self, obs: NDArray[np.uint8], act: Ints, phase: Ints) -> Images:
        mean = _mean(obs) if self._mean is None else np.repeat(self._mean, len(obs), 0)
        return super().reset(mean[:, None], act, phase)

    def context_predictions(self, obs: NDArray[np.uint8], act: Ints, phase: Ints) -> NDArray[np.uint8]:
        return np.repeat(self.reset(obs, act, phase)[:, None], obs.shape[1] - 1, 1)


class Blurred:
    """Another dreamer seen through a box blur of `radius` pixels: what melting looks like."""

    def __init__(self, dreamer: Dreamer, radius: int = 12) -> None:
        self.name = f"blurred {dreamer.name}"
        self._dreamer, self._radius = dreamer, radius

    def reset(self, obs: NDArray[np.uint8], act: Ints, phase: Ints) -> Images:
        return box_blur(self._dreamer.reset(obs, act, phase), self._radius)

    def step(self, act: Ints) -> Images:
        return box_blur(self._dreamer.step(act), self._radius)


class Frozen:
    """Another dreamer that stops for good after `ticks` ticks."""

    def __init__(self, dreamer: Dreamer, ticks: int = 8) -> None:
        self.name = f"frozen {dreamer.name}"
        self._dreamer, self._ticks = dreamer, ticks

    def reset(self, obs: NDArray[np.uint8], act: Ints, phase: Ints) -> Images:
        self._left = self._ticks
        self._frame = self._dreamer.reset(obs, act, phase)
        return self._frame

    def step(self, act: Ints) -> Images:
        if self._left > 0:
            self._left -= 1
            self._frame = self._dreamer.step(act)
        return self._frame


class Noise:
    """Every picture is new white noise."""

    name = "noise"

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed

    def reset(self, obs: NDArray[np.uint8], act: Ints, phase: Ints) -> Images:
        self._rng = np.random.default_rng(self._seed)
        self._shape = (len(obs), *obs.shape[2:])
        return self.step(act)

    def step(self, act: Ints) -> Images:
        return self._rng.integers(0, 256, self._shape, np.uint8)


class OneTexture:
    """One small patch of the last context frame, tiled over the picture, drifting sideways for ever."""

    name = "one-texture"

    def __init__(self, patch: int = 16) -> None:
        self._patch = patch

    def reset(self, obs: NDArray[np.uint8], act: Ints, phase: Ints) -> Images:
        height, width = obs.shape[2:4]
        p, top, left = self._patch, height // 3, width // 3
        tile = obs[:, -1, top : top + p, left : left + p]
        self._frame = np.tile(tile, (1, -(-height // p), -(-width // p), 1))[:, :height, :width]
        return self._frame

    def step(self, act: Ints) -> Images:
        self._frame = np.roll(self._frame, 5, axis=2)
        return self._frame


def box_blur(images: Images, radius: int) -> Images:
    """Every pixel (B, H, W, 3) as the mean of the square that reaches `radius` pixels around it."""
    r = radius
    x = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float()
    for kernel, pad in (((1, 2 * r + 1), (r, r, 0, 0)), ((2 * r + 1, 1), (0, 0, r, r))):
        x = F.avg_pool2d(F.pad(x, pad, "replicate"), kernel, 1)
    return x.permute(0, 2, 3, 1).round().to(torch.uint8).numpy()


def _mean(obs: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(B, T, H, W, 3) to the mean over time (B, H, W, 3)."""
    return np.asarray(np.rint(obs.mean(1, dtype=np.float32)), np.uint8)
