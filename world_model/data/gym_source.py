"""Any Gymnasium environment with `rgb_array` rendering and discrete actions as a source.

The environment's own step is taken to be one tick; `frame_skip` covers environments that run faster.
CarRacing runs at 50 steps a second, so a tick of 40 ms is two of its steps.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from world_model.data.sources import Observation, check_action
from world_model.types import FPS, Action, Image, SourceError

WIDTH, HEIGHT = 256, 160


class GymSource:
    """A Gymnasium environment at 25 Hz, its picture fitted to 256 x 160.

    Raises SourceError when Gymnasium or the environment is missing, or the actions are not discrete.
    """

    fps = FPS
    phases = 1

    def __init__(
        self,
        env_id: str,
        name: str | None = None,
        actions: tuple[Action, ...] | None = None,
        frame_skip: int = 1,
        licence: str = "see the environment",
        **options: Any,
    ) -> None:
        try:
            import gymnasium as gym
        except ImportError as err:
            raise SourceError('Gymnasium is not installed; run pip install "reverie[gym]"') from err
        try:
            self._env = gym.make(env_id, render_mode="rgb_array", **options)
        except gym.error.Error as err:
            raise SourceError(f'{env_id} cannot be made: {err}; run pip install "reverie[gym]"') from err
        if not isinstance(self._env.action_space, gym.spaces.Discrete):
            raise SourceError(f"{env_id} has no discrete actions: {self._env.action_space}")
        self.name = name or env_id
        self.licence = licence
        self.actions = actions or tuple(Action(f"action_{i}") for i in range(int(self._env.action_space.n)))
        self._frame_skip = frame_skip

    def reset(self, seed: int) -> Observation:
        self._env.reset(seed=seed % 2**31)
        return Observation(image=self._picture())

    def step(self, action: int) -> Observation:
        """Repeats the action for `frame_skip` steps and sums their reward."""
        action = check_action(action, self.actions)
        total, terminated, truncated = 0.0, False, False
        for _ in range(self._frame_skip):
            _, reward, terminated, truncated, _ = self._env.step(action)
            total += float(reward)
            if terminated or truncated:
                break
        return Observation(self._picture(), reward=total, terminated=terminated, truncated=truncated)

    def close(self) -> None:
        self._env.close()

    def _picture(self) -> Image:
        return fit_picture(np.asarray(self._env.render()))


def fit_picture(image: Image) -> Image:
    """Crops the centre to 16:10 and resamples to 256 x 160 by area (nearest where it must enlarge)."""
    height, width = image.shape[:2]
    if width * HEIGHT > height * WIDTH:
        keep = height * WIDTH // HEIGHT
        image = image[:, (width - keep) // 2 :][:, :keep]
    else:
        keep = width * HEIGHT // WIDTH
        image = image[(height - keep) // 2 :][:keep]
    import torch

    tensor = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float()
    tensor = torch.nn.functional.interpolate(tensor, (HEIGHT, WIDTH), mode="area")
    return np.ascontiguousarray(tensor[0].round().clamp(0, 255).byte().permute(1, 2, 0).numpy())


def car_racing() -> GymSource:
    """Gymnasium's CarRacing with its five discrete actions."""
    actions = (
        Action("idle"),
        Action("right", ("right",)),
        Action("left", ("left",)),
        Action("gas", ("up",)),
        Action("brake", ("down",)),
    )
    return GymSource(
        "CarRacing-v3", "car_racing", actions, frame_skip=2, licence="Gymnasium, MIT", continuous=False
    )
