"""`World`: the public API, its exactness, and its refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tiny import ACTIONS, HEIGHT, TINY, WIDTH, tiny_frames, tiny_world
from world_model import World, load_world
from world_model.types import WorldError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_world(tmp_path_factory.mktemp("worlds") / "tiny")


@pytest.fixture
def world(folder: Path) -> World:
    return load_world(folder)


def play(world: World, actions: list[int]) -> list[bytes]:
    return [world.step(a).image.tobytes() for a in actions]


SCRIPT = [1, 1, 2, 3, 0, 1, 2, 2, 1, 3] * 3


def test_frames_are_owned_by_the_caller(world: World) -> None:
    first = world.reset(seed=0)
    assert first.image.shape == (HEIGHT, WIDTH, 3) and first.image.dtype == np.uint8
    assert first.image.flags.c_contiguous and first.image.flags.owndata
    before = world.snapshot().hash()
    first.image[:] = 0
    assert world.snapshot().hash() == before


def test_same_seed_and_actions_give_the_same_bytes(folder: Path) -> None:
    runs = []
    for _ in range(2):
        world = load_world(folder)
        world.reset(seed=3)
        runs.append((play(world, SCRIPT), world.snapshot().hash()))
    assert runs[0] == runs[1]


def test_another_seed_paints_another_future(world: World) -> None:
    futures = []
    for seed in (0, 4):  # the same scene: there are four
        world.reset(seed=seed)
        futures.append(play(world, SCRIPT))
    assert futures[0] != futures[1]


def test_restore_is_exact_and_independent_of_later_steps(world: World) -> None:
    world.reset(seed=1)
    play(world, SCRIPT[:7])
    state = world.snapshot()
    kept = state.hash()
    first = play(world, SCRIPT)
    assert state.hash() == kept
    world.restore(state)
    assert play(world, SCRIPT) == first


def test_scene_by_name_and_by_seed(world: World) -> None:
    assert world.info.scenes == ("scene1", "scene2", "scene3", "scene4")
    named = world.reset(seed=2, scene="scene3").image
    np.testing.assert_array_equal(named, world.reset(seed=2).image)
    assert not np.array_equal(named, world.reset(seed=3).image)


def test_context_starts_from_real_frames(world: World) -> None:
    obs = tiny_frames(6, seed=1)
    shown = world.reset(seed=0, context=(obs, np.zeros(5, np.int64))).image
    assert shown.shape == (HEIGHT, WIDTH, 3)
    assert world.memory.window == min(5, TINY.dynamics.window)
    assert len(world.memory.keyframes) >= 1


def test_memory_is_bounded_and_state_constant_in_size(world: World) -> None:
    world.reset(seed=0)
    play(world, SCRIPT)
    early = world.snapshot()
    play(world, SCRIPT * 4)
    late = world.snapshot()
    tensors = [sum(t.nbytes for t in s.dream.tensors()) for s in (early, late)]
    assert tensors[0] == tensors[1]
    assert len(world.memory.keyframes) <= TINY.dynamics.keyframes
    assert world.memory.window == TINY.dynamics.window
    assert world.memory.keyframes[0].age == late.dream.tick, "the first frame must never be evicted"


def test_nan_never_survives_a_tick(world: World) -> None:
    world.reset(seed=0)
    world.step(1)
    good = world.snapshot()
    layer = good.dream.trunk.layers[0]
    broken_layer = layer._replace(mamba=layer.mamba._replace(ssm=layer.mamba.ssm * float("nan")))
    trunk = replace(good.dream.trunk, layers=(broken_layer, *good.dream.trunk.layers[1:]))
    world.restore(replace(good, dream=replace(good.dream, trunk=trunk)))
    frame = world.step(1)
    assert frame.info.guard_events == 1
    np.testing.assert_array_equal(frame.image, good.image)


@pytest.mark.parametrize("action", [-1, len(ACTIONS), 1.5])
def test_action_out_of_range(world: World, action: float) -> None:
    world.reset()
    with pytest.raises(ValueError, match="out of range"):
        world.step(action)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("obs", "act"),
    [
        (np.zeros((3, HEIGHT, WIDTH, 3), np.float32), np.zeros(2, int)),
        (np.zeros((3, HEIGHT, WIDTH + 1, 3), np.uint8), np.zeros(2, int)),
        (np.zeros((HEIGHT, WIDTH, 3), np.uint8), np.zeros(2, int)),
        (np.zeros((3, HEIGHT, WIDTH, 3), np.uint8), np.zeros(3, int)),
        (np.zeros((3, HEIGHT, WIDTH, 3), np.uint8), np.full(2, 99)),
        (np.zeros((3, HEIGHT, WIDTH, 3), np.uint8), np.zeros(2, float)),
    ],
)
def test_context_that_does_not_fit(world: World, obs: np.ndarray, act: np.ndarray) -> None:
    with pytest.raises(ValueError, match="context"):
        world.reset(context=(obs, act))


def test_unknown_world_and_scene(world: World) -> None:
    with pytest.raises(WorldError, match="unknown world 'nowhere'"):
        load_world("nowhere")
    with pytest.raises(WorldError, match="no scene 'cellar'"):
        world.reset(scene="cellar")


def test_missing_weights_name_the_file(tmp_path: Path) -> None:
    folder = tiny_world(tmp_path / "tiny")
    (folder / "weights.safetensors").unlink()
    with pytest.raises(WorldError, match=r"weights\.safetensors"):
        load_world(folder)


def test_damaged_scene_is_refused(tmp_path: Path) -> None:
    folder = tiny_world(tmp_path / "tiny")
    path = folder / "scenes" / "scene1.safetensors"
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(WorldError, match="scene1"):
        load_world(folder).reset(scene="scene1")


def test_step_before_reset_says_so(folder: Path) -> None:
    with pytest.raises(ValueError, match="reset"):
        load_world(folder).step(0)


def test_weights_load_without_random_numbers(folder: Path) -> None:
    before = torch.get_rng_state()
    load_world(folder)
    assert torch.equal(before, torch.get_rng_state())
