"""The worlds in `assets/`: each loads, plays and keeps its size; `arena` is seen and heard to shoot."""

from __future__ import annotations

import numpy as np
import pytest

from world_model import load_world
from world_model.checkpoint import WEIGHTS_NAME
from world_model.paths import list_worlds

WORLDS = list_worlds()
BYTES = 16_000_000


@pytest.mark.parametrize("name", sorted(WORLDS))
def test_every_shipped_world_plays_from_each_of_its_scenes(name: str) -> None:
    folder = WORLDS[name]
    assert (folder / WEIGHTS_NAME).stat().st_size <= BYTES
    assert (folder / "NOTICES.md").exists() and (folder / "CARD.md").exists()
    world = load_world(folder)
    for scene in world.info.scenes:
        first = world.reset(seed=0, scene=scene).image
        assert world.step(1).image.std() > 10 and first.std() > 10


@pytest.mark.parametrize("name", sorted(WORLDS))
def test_a_moment_of_every_shipped_world_can_be_kept(name: str) -> None:
    world = load_world(name)
    world.reset(seed=0)
    for ticks in (0, 3):
        for _ in range(ticks):
            world.step(1)
        state = world.snapshot()
        kept = world.unpack_state(world.pack_state(state))
        assert kept.hash() == state.hash()


def test_in_the_arena_a_shot_is_seen_and_heard_in_its_tick() -> None:
    world = load_world("arena")
    shoot = next(i for i, action in enumerate(world.actions) if action.name == "shoot")
    seen, heard = [], []
    for scene in world.info.scenes:
        world.reset(seed=0, scene=scene)
        for _ in range(3):
            world.step(0)
        before = world.snapshot()
        still = world.step(0)
        world.restore(before)
        fired = world.step(shoot)
        assert still.audio is not None and fired.audio is not None
        brighter = fired.image.astype(int) - still.image
        seen.append(brighter[60:110, 108:148].max(-1).clip(0).mean())
        heard.append(loudness(fired.audio) - loudness(still.audio))
    assert np.median(seen) > 8 and np.median(heard) > 0.02


@pytest.mark.parametrize("name", ["arena", "rooms"])
def test_who_lets_go_of_the_keys_stands_still(name: str) -> None:
    """What a motion model errs by adds up: they once walked half the hall, and turned, in 20 seconds."""
    world = load_world(name)
    world.reset(seed=0, scene="scene1")
    poses = []
    for ticks in (25, 75):
        for _ in range(ticks):
            world.step(0, paint=False)
        poses.append(world.snapshot().dream.place.pose[0])
    moved = (poses[1] - poses[0]).abs()
    assert float(moved[:2].max()) < 0.005 and float(moved[2]) < 0.01


def loudness(sound: np.ndarray) -> float:
    return float(np.sqrt(np.square(sound / 32768.0).mean()))
