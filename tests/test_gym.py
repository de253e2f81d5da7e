"""Gymnasium on both sides: the dream as an environment, and environments as sources."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from game.keys import Command, choose_action, default_bindings
from stub_world import ACTIONS, FORWARD, StubWorld
from world_model.data import collect as collecting
from world_model.data.collect import CollectConfig, collect, record_episode
from world_model.data.episodes import read_episode
from world_model.data.policies import Walker
from world_model.data.sources import Observation, make_source
from world_model.types import Action, DataError, SourceError

gymnasium = pytest.importorskip("gymnasium")

from world_model import gym as dreaming  # noqa: E402
from world_model.data.gym_source import SPARE_KEYS, GymSource  # noqa: E402


class Square(gymnasium.Env[Any, Any]):
    """Paints how often each of its three actions, counted from 5, was taken."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 25}  # noqa: RUF012
    observation_space = gymnasium.spaces.Box(0, 255, (3,), np.uint8)
    action_space = gymnasium.spaces.Discrete(3, start=5)

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._taken = np.zeros(3, np.int64)
        return self._taken.astype(np.uint8), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._taken[int(action) - 5] += 1
        return self._taken.astype(np.uint8), 0.0, False, False, {}

    def render(self) -> Any:
        return np.broadcast_to(self._taken.astype(np.uint8), (160, 256, 3)).copy()


class Told(Square):
    """The same, telling its keys."""

    def get_keys_to_action(self) -> dict[Any, int]:
        return {(): 5, ("w", "d"): 6, 0x40000050: 7}


@pytest.fixture(autouse=True)
def registered() -> Any:
    ids = {"Square-v0": Square, "Told-v0": Told}
    for name, kind in ids.items():
        gymnasium.register(name, kind, disable_env_checker=True)
    yield
    for name in ids:
        del gymnasium.registry[name]


@pytest.fixture
def dream(monkeypatch: pytest.MonkeyPatch) -> dreaming.DreamEnv:
    world = StubWorld()
    own = (Action("shoot", ("space",)), Action("lean", ("q",)), Action("crouch", ("left ctrl",)))
    world.actions = (*ACTIONS, *own)
    monkeypatch.setattr(dreaming, "load_world", lambda name: world)
    return dreaming.DreamEnv("stub", max_ticks=20)


def test_the_dream_keeps_gymnasiums_rules(dream: dreaming.DreamEnv) -> None:
    from gymnasium.utils.env_checker import check_env

    check_env(dream, skip_render_check=True)


def test_an_episode_ends_with_the_dream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dreaming, "load_world", lambda name: StubWorld(lasts=3))
    dream = dreaming.DreamEnv("stub", max_ticks=20)
    dream.reset(seed=1)
    ends = [dream.step(np.int64(0))[2:4] for _ in range(3)]
    assert ends == [(False, False), (False, False), (True, False)]


def test_the_dream_can_be_played_by_gymnasium(
    dream: dreaming.DreamEnv, monkeypatch: pytest.MonkeyPatch
) -> None:
    pygame = pytest.importorskip("pygame")
    from gymnasium.utils.play import play

    monkeypatch.setattr(pygame.time, "Clock", lambda: SimpleNamespace(tick=lambda fps: None))
    script = [[(pygame.KEYDOWN, pygame.K_w)], [(pygame.KEYUP, pygame.K_w)], [(pygame.QUIT, 0)]]
    taken: list[int] = []

    def events() -> list[Any]:
        return [pygame.event.Event(kind, key=key) for kind, key in script.pop(0)]

    monkeypatch.setattr(pygame.event, "get", events)
    play(dream, callback=lambda before, after, action, *_: taken.append(int(action)))
    assert taken == [FORWARD, 0]


def test_keys_without_a_sign_are_left_out(dream: dreaming.DreamEnv) -> None:
    keys = dream.get_keys_to_action()
    assert keys[("w",)] == FORWARD and ACTIONS[keys[("a", "w")]].name == "forward_left"
    assert (keys[(" ",)], keys[("q",)]) == (7, 8)
    assert () not in keys and 9 not in keys.values()


def test_a_source_is_opened_again_by_its_name() -> None:
    source = make_source("gym:Square-v0")
    assert source.name == "gym:Square-v0" == make_source(source.name).name


@pytest.mark.parametrize("name", ["foo_not_there:bar-v1", ":bar-v1", "a:b:c", "", "Nope-v1"])
def test_an_environment_that_is_not_there_is_one_clear_error(name: str) -> None:
    with pytest.raises(SourceError, match="cannot be made"):
        make_source(f"gym:{name}")


def test_every_action_of_an_environment_has_a_key_that_nothing_else_has() -> None:
    actions = make_source("gym:Square-v0").actions
    assert [choose_action(actions, a.default_keys) for a in actions] == [0, 1, 2]
    assert not set(SPARE_KEYS) & (set(default_bindings().game) | set(default_bindings().commands))
    assert len(default_bindings(actions).keys_of(Command.SLOT)) == 10


def test_an_environments_own_keys_and_first_action() -> None:
    source = make_source("gym:Told-v0")
    assert [set(a.default_keys) for a in source.actions] == [set(), {"up", "right"}, {"left"}]
    source.reset(0)
    assert source.step(2).image[0, 0].tolist() == [0, 0, 1]


def test_a_walker_does_all_that_a_game_without_arrows_has_and_holds_it() -> None:
    actions = make_source("gym:Square-v0").actions
    taken = record_episode(make_source("gym:Square-v0"), 3, 600).actions
    counts = np.bincount(taken, minlength=len(actions))
    assert counts.min() > 100
    assert np.mean(taken[1:] == taken[:-1]) > 0.6
    bare = Walker(tuple(Action(f"action_{i}") for i in range(3)), 0)
    image = np.zeros((4, 4, 3), np.uint8)
    assert {bare.act(Observation(image)) for _ in range(300)} == {0, 1, 2}


def test_a_game_is_opened_once_and_closed_for_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    closed: list[str] = []

    class Noted(GymSource):
        def __init__(self, env_id: str) -> None:
            super().__init__(env_id)
            opened.append(env_id)

        def close(self) -> None:
            closed.append(self.name)

    monkeypatch.setattr(collecting, "_source", None)
    monkeypatch.setattr(collecting, "make_source", lambda name, **_: Noted(name.removeprefix("gym:")))
    for i, name in enumerate(["gym:Square-v0", "gym:Square-v0", "gym:Told-v0"]):
        collecting._run(collecting._Job(name, "train", i, 4, tmp_path / f"ep_{i:010d}", True))
    assert (opened, closed) == (["Square-v0", "Told-v0"], ["gym:Square-v0"])
    header = read_episode(tmp_path / "ep_0000000000").header
    assert make_source(header["source"]).actions == make_source("gym:Square-v0").actions


def test_more_frames_than_any_disk_has_are_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_list(config: CollectConfig) -> list[object]:
        raise AssertionError("the list of jobs was made before the disk was looked at")

    monkeypatch.setattr(collecting, "_jobs", no_list)
    with pytest.raises(DataError, match="fewer --frames"):
        collect(CollectConfig("gym:Square-v0", 10**11, tmp_path / "out"))
