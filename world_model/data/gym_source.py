"""Any Gymnasium environment with `rgb_array` rendering and discrete actions as a source.

The environment's own step is taken to be one tick; `frame_skip` covers environments that run faster.
CarRacing runs at 50 steps a second, so a tick of 40 ms is two of its steps.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import numpy as np

from world_model.data.sources import Observation, check_action
from world_model.types import FPS, Action, Image, SourceError

WIDTH, HEIGHT = 256, 160
SPARE_KEYS = (*"jklioybgzxceq", *(f"[{n}]" for n in range(10)), *(f"f{n}" for n in range(13, 25)))
"""Keys for the actions of an environment that names none: those that no command and no arrow has."""
ARROWS: dict[str | int, str] = {0x4000004F: "right", 0x40000050: "left", 0x40000051: "down", 0x40000052: "up"}
NAMES: dict[str | int, str] = {"w": "up", "a": "left", "s": "down", "d": "right", " ": "space", **ARROWS}
"""What the keys of `gymnasium.utils.play`, signs or numbers of SDL, are called here."""


class GymSource:
    """A Gymnasium environment at 25 Hz, its picture fitted to 256 x 160.

    name: what `make_source` opens it by, "gym:ENV_ID" unless it has one of its own. actions: with their
    keys; without, those of the environment, with the keys that it tells or with letters.
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
        except (gym.error.Error, ImportError, ValueError) as err:  # the last two: "module:ENV_ID" is imported
            raise SourceError(f'{env_id} cannot be made: {err}; run pip install "reverie[gym]"') from err
        if not isinstance(self._env.action_space, gym.spaces.Discrete):
            raise SourceError(f"{env_id} has no discrete actions: {self._env.action_space}")
        self.name = name or f"gym:{env_id}"
        self.licence = licence
        self.actions = actions or _actions(self._env, int(self._env.action_space.n))
        self._first = int(self._env.action_space.start)
        self._frame_skip = frame_skip

    def reset(self, seed: int) -> Observation:
        self._env.reset(seed=seed % 2**31)
        return Observation(image=self._picture())

    def step(self, action: int) -> Observation:
        """Repeats the action for `frame_skip` steps and sums their reward."""
        action = check_action(action, self.actions) + self._first
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


def _actions(env: Any, count: int) -> tuple[Action, ...]:
    """As many actions, each with the keys that the environment tells for it; where it tells none, with a
    spare key each, which a person can give another place.
    """
    if env.has_wrapper_attr("get_keys_to_action"):
        first = int(env.action_space.start)
        keys: dict[int, tuple[str, ...]] = {}
        for pressed, action in env.get_wrapper_attr("get_keys_to_action")().items():
            keys.setdefault(int(action) - first, _key_names(pressed))
        return tuple(Action(f"action_{i}", keys.get(i, ())) for i in range(count))
    names = [f"action_{i}" for i in range(count)]
    spare = [
        *SPARE_KEYS,
        *names[len(SPARE_KEYS) :],
    ]  # past them a key that there is not, or all would be idle
    return tuple(Action(name, (key,)) for name, key in zip(names, spare, strict=False))


def _key_names(pressed: str | int | Iterable[str | int]) -> tuple[str, ...]:
    """One or several keys of `gymnasium.utils.play`, each a sign or its number, as `Action` names them."""
    several = (pressed,) if isinstance(pressed, str | int) else tuple(pressed)
    return tuple(_key_name(key) for key in several)


def _key_name(key: str | int) -> str:
    if isinstance(key, int) and key not in NAMES:
        key = chr(key) if key <= sys.maxunicode else f"key {key}"
    return NAMES.get(key, str(key))


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
