"""The dream as a Gymnasium environment (extra `[gym]`).

Observations are uint8 (H, W, 3); actions the world's indices. A dream has no goal: rewards are 0. An episode
is terminated where the dream is over, as by the player's death, and truncated after `max_ticks`.
"""

from __future__ import annotations

import os
from typing import Any

import gymnasium
import numpy as np

from world_model.types import Image
from world_model.world import load_world

SIGNS = {"up": "w", "left": "a", "down": "s", "right": "d", "space": " "}
"""The signs by which `gymnasium.utils.play` knows the keys that actions name."""


class DreamEnv(gymnasium.Env[Image, np.int64]):
    """`DreamEnv("rooms")`. With `scene=None` each reset draws a scene from the environment's seed."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 25}  # noqa: RUF012 (Gymnasium's own convention)

    def __init__(
        self,
        world: str | os.PathLike[str] = "rooms",
        scene: str | None = None,
        max_ticks: int = 1000,
        render_mode: str | None = "rgb_array",
    ) -> None:
        self._world = load_world(world)
        self._scene, self._max_ticks, self._ticks = scene, max_ticks, 0
        self.render_mode = render_mode
        info = self._world.info
        self.observation_space = gymnasium.spaces.Box(0, 255, (info.height, info.width, 3), np.uint8)
        self.action_space = gymnasium.spaces.Discrete(len(self._world.actions))
        self._image: Image = np.zeros((info.height, info.width, 3), np.uint8)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Image, dict[str, Any]]:
        super().reset(seed=seed)
        scene = (options or {}).get("scene", self._scene)
        frame = self._world.reset(seed=int(self.np_random.integers(2**31)), scene=scene)
        self._ticks, self._image = 0, frame.image
        return self._image.copy(), {"tick": frame.info.tick}

    def step(self, action: np.int64) -> tuple[Image, float, bool, bool, dict[str, Any]]:
        frame = self._world.step(int(action))
        self._ticks, self._image = self._ticks + 1, frame.image
        info = {"tick": frame.info.tick, "guard_events": frame.info.guard_events}
        return self._image.copy(), 0.0, frame.info.over, self._ticks >= self._max_ticks, info

    def render(self) -> Image:
        return self._image.copy()

    def get_keys_to_action(self) -> dict[tuple[str, ...], int]:
        """For `gymnasium.utils.play`: w, a, s, d, the space bar and the letters that the world names.

        Left out are actions without keys, which `play` does when nothing is pressed, and those with a key
        that has no sign of its own ("left ctrl"), which it cannot read.
        """
        keys: dict[tuple[str, ...], int] = {}
        for index, action in enumerate(self._world.actions):
            signs = tuple(sorted(SIGNS.get(key, key) for key in action.default_keys))
            if signs and all(len(sign) == 1 for sign in signs):
                keys.setdefault(signs, index)
        return keys
