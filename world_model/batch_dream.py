"""Many dreams of a world at once: what evaluation and previews run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from world_model.dream import DreamEngine
from world_model.state import DreamState

SETTLE_AT = (8, 31)
"""Ticks after which a dream that only watches makes sure of its place, from what it has seen so far."""
FOLLOW_FRAMES = 10
"""After the last of them it is led by so many last real frames."""


class BatchDream:
    """`reset` and `step` for many dreams at once, as evaluation and previews use them."""

    def __init__(self, engine: DreamEngine, name: str = "dream", seed: int = 0) -> None:
        self.engine, self.name, self.seed = engine, name, seed
        self._state: DreamState | None = None

    def reset(
        self, obs: NDArray[np.uint8], act: NDArray[np.int64], phase: NDArray[np.int64]
    ) -> NDArray[np.uint8]:
        """obs (B, T, H, W, 3), act (B, T - 1), phase (B,) -> the last context frame, encoded and decoded."""
        z = torch.stack([self.engine.encode(np.ascontiguousarray(o)) for o in obs])
        self._state = self.engine.start(z, act, phase, self.seed, obs)
        return self.engine.show(self._state)

    def step(self, act: NDArray[np.int64]) -> NDArray[np.uint8]:
        """The next picture (B, H, W, 3) of each dream."""
        return self.engine.show(self.advance(act))

    def advance(self, act: NDArray[np.int64]) -> DreamState:
        """A tick that nobody looks at: dreamed, but not painted."""
        assert self._state is not None, "reset comes first"
        actions = torch.as_tensor(np.asarray(act), dtype=torch.long, device=self.engine.device)
        self._state = self.engine.tick(self._state, actions)
        return self._state

    @property
    def heard(self) -> NDArray[np.int16] | None:
        """The sound of the present tick (B, samples, channels); None in a world without sound."""
        assert self._state is not None, "reset comes first"
        sound = self._state.sound
        return None if sound is None else sound.samples.cpu().numpy()

    def reseeded(self, seed: int) -> BatchDream:
        """The same world with other chances."""
        return type(self)(self.engine, self.name, seed)

    def context_predictions(
        self, obs: NDArray[np.uint8], act: NDArray[np.int64], phase: NDArray[np.int64]
    ) -> NDArray[np.uint8]:
        """One tick ahead from real frames: predictions of obs[:, 1:], (B, T - 1, H, W, 3)."""
        z = torch.stack([self.engine.encode(np.ascontiguousarray(o)) for o in obs])
        state = self.engine.start(z[:, :1], np.zeros((len(z), 0), np.int64), phase, self.seed)
        frames, path = [], [state.place]
        actions = torch.as_tensor(np.asarray(act), dtype=torch.long, device=self.engine.device)
        for t in range(act.shape[1]):
            before = state
            state = self._imagined(state, actions[:, t], np.stack([o[t] for o in obs]))
            frames.append(self.engine.show(state))
            path.append(state.place)
            state, seen = replace(state, z=z[:, t + 1]), z[:, : t + 2]
            if t + 1 <= SETTLE_AT[-1] or self.engine.config.dynamics.recall:
                state = self.engine.look(state, before, np.stack([o[t : t + 2] for o in obs]))
            if t + 1 in SETTLE_AT:
                state = self.engine.settle(state, path, seen, actions[:, : t + 1])
            if t + 1 > SETTLE_AT[-1]:
                state = self.engine.follow(state, path[-FOLLOW_FRAMES:], seen[:, -FOLLOW_FRAMES:])
            state = self.engine.watch(state, np.stack([o[t + 1] for o in obs]))
        return np.stack(frames, 1)

    def _imagined(self, state: DreamState, act_B: Tensor, real: NDArray[np.uint8]) -> DreamState:
        """One tick of `context_predictions`, for those who look at a state before it is painted."""
        return self.engine.tick(state, act_B, before=lambda: real, real=True)

    def reconstruct(self, obs: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Frames (..., H, W, 3) encoded and decoded: the ceiling of every prediction."""
        flat = np.ascontiguousarray(obs).reshape(-1, *obs.shape[-3:])
        return self.engine.decode(self.engine.encode(flat)).reshape(obs.shape)
