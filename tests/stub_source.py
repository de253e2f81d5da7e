"""A real game that needs nothing: the stub world's pictures, with a place and a clock."""

from __future__ import annotations

import numpy as np

from stub_world import ACTIONS, StubState, StubWorld
from world_model.data.sources import Observation
from world_model.types import Action


class StubSource:
    """Ends every `length` ticks. The pose is the tick and the action that led there."""

    name, fps, licence, phases = "stub", 25, "MIT", 5
    actions: tuple[Action, ...] = ACTIONS

    def __init__(self, length: int = 10_000) -> None:
        self.world, self.length, self.tick = StubWorld(), length, 0
        self.seeds: list[int] = []
        """What it was reset with."""
        self.steps = 0
        self.state_of: dict[bytes, StubState] = {}
        """The game's state at each picture that it has shown."""

    def reset(self, seed: int) -> Observation:
        self.seeds.append(seed)
        self.tick = 0
        self.world.reset(seed)
        return self._observe(0)

    def step(self, action: int) -> Observation:
        self.tick += 1
        self.steps += 1
        self.world.step(action)
        return self._observe(action)

    def close(self) -> None: ...

    def _observe(self, action: int) -> Observation:
        state = self.world.snapshot()
        self.state_of[state.image.tobytes()] = state
        return Observation(
            state.image.copy(),
            pose=np.array([self.tick, action, 0.5], np.float32),
            reward=float(action),
            terminated=self.tick >= self.length,
            phase=self.tick % self.phases,
        )
