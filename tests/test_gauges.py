"""Numbers on a status bar: written, read, and changed by their odds."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from test_cast import CAST, CASTING, cast_data, dataset, things
from tiny import ACTIONS, HEIGHT, WIDTH, tiny_model, tiny_world
from world_model import load_world
from world_model.config import CastConfig
from world_model.data.episodes import Episode, read_episode, write_episode
from world_model.gauges import BLANK, CHANGES, Gauges, digits
from world_model.training.gauges_stage import GaugesStage, endings, meanings, numbers
from world_model.training.publish import _hale, choose_scenes
from world_model.types import WorldError

GAUGED = replace(CAST, gauges=("AMMO", "HEALTH"), boxes=(2, 20, 12, 6, 20, 20, 12, 6))
GAUGING = replace(CASTING, cast=GAUGED)
HERE = torch.zeros(1, 3)
IDLE, PHASE = torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.long)


def some_gauges() -> Gauges:
    """With glyphs that are nothing alike, and changes of 0, -1 and 10."""
    torch.manual_seed(0)
    gauges = Gauges(GAUGED, len(ACTIONS), 5)
    gauges.glyphs.copy_(torch.rand_like(gauges.glyphs))
    steps = torch.zeros(2, CHANGES)
    steps[:, 1], steps[:, 2] = -1, 10
    gauges.steps.copy_(steps.flatten())
    return gauges.eval().requires_grad_(False)


def change(gauges: Gauges, which: int) -> None:
    """From now on only this change is drawn."""
    last = gauges.out[-1]
    assert isinstance(last, torch.nn.Linear)
    last.weight.zero_()
    last.bias.fill_(-50.0).view(2, CHANGES)[:, which] = 50.0


def test_numbers_are_written_flush_right() -> None:
    told = digits(torch.tensor([0, 7, 42, 100, 999]))
    rows = [[BLANK, BLANK, 0], [BLANK, BLANK, 7], [BLANK, 4, 2], [1, 0, 0], [9, 9, 9]]
    assert told.tolist() == rows


def test_what_is_written_is_read_and_nothing_else_of_the_picture_changes() -> None:
    gauges = some_gauges()
    shown = torch.tensor([[0, 7], [42, 100], [999, 13]])
    blank = torch.rand(3, 3, HEIGHT, WIDTH) * 2 - 1
    picture = gauges.write(blank, shown)
    assert torch.equal(gauges.read(picture), shown)
    touched = (picture != blank).any(1).any(0)
    inside = torch.zeros_like(touched)
    for x, y, width, height in gauges.boxes:
        inside[y : y + height, x : x + width] = True
    assert not (touched & ~inside).any()


def test_a_number_changes_by_what_is_drawn_and_is_shown_a_tick_later() -> None:
    gauges = some_gauges()
    readings = gauges.watch(
        gauges.nothing(1, "cpu"), gauges.write(torch.zeros(1, 3, HEIGHT, WIDTH), torch.tensor([[1, 50]]))
    )
    assert readings.value.tolist() == [[1, 50]]
    change(gauges, 1)
    luck = torch.full((1, 2), 0.5)
    after = gauges.step(readings, things((1, 1, 0.3, 0.0)), HERE, IDLE, PHASE, luck)
    assert after.value.tolist() == [[0, 49]] and after.shown.tolist() == [[1, 50]]
    again = gauges.step(after, things(), HERE, IDLE, PHASE, luck)
    assert again.value.tolist() == [[0, 48]]  # nothing is less than none
    assert again.shown.tolist() == [[0, 49]]
    change(gauges, 2)
    assert gauges.step(again, things(), HERE, IDLE, PHASE, luck).value.tolist() == [[10, 58]]


def test_a_world_with_gauges_reads_its_context_saves_and_goes_on(tmp_path: Path) -> None:
    model = tiny_model(config=GAUGING)
    assert model.gauges is not None
    world = load_world(tiny_world(tmp_path / "w", config=GAUGING))
    gauges = world._engine.model.gauges
    assert gauges is not None
    obs = np.random.default_rng(0).integers(0, 256, (4, HEIGHT, WIDTH, 3)).astype(np.uint8)
    frame = world.reset(context=(obs, np.array([1, 1, 2])))
    readings = world.snapshot().dream.readings
    assert readings is not None
    real = torch.from_numpy(obs[-1:]).permute(0, 3, 1, 2).float() / 127.5 - 1
    assert torch.equal(readings.shown, gauges.read(real))
    drawn = torch.from_numpy(frame.image[None]).permute(0, 3, 1, 2).float() / 127.5 - 1
    assert torch.equal(gauges.read(drawn), readings.shown)
    for action in (1, 2, 2):
        world.step(action)
    moment = world.snapshot()
    ahead = [world.step(a).image for a in (1, 3)]
    world.restore(world.unpack_state(world.pack_state(moment)))
    assert all(np.array_equal(a, world.step(b).image) for a, b in zip(ahead, (1, 3), strict=True))


def test_a_shot_without_ammunition_is_none() -> None:
    gauges = some_gauges()
    gauges.meaning[0, 3] = 1
    readings = gauges.nothing(3, "cpu")._replace(value=torch.tensor([[0, 50], [2, 50], [0, 0]]))
    assert gauges.meant(readings, torch.tensor([3, 3, 3])).tolist() == [1, 3, 1]
    assert gauges.meant(readings, torch.tensor([2, 2, 2])).tolist() == [2, 2, 2]


def test_a_dream_acts_on_what_its_actions_amount_to(tmp_path: Path) -> None:
    world = load_world(tiny_world(tmp_path / "w", config=GAUGING))
    gauges = world._engine.model.gauges
    assert gauges is not None
    world.reset(0)
    moment = world.snapshot()
    readings = moment.dream.readings
    assert readings is not None

    def after(action: int, value: int) -> torch.Tensor:
        told = readings._replace(value=torch.full_like(readings.value, value))
        world.restore(replace(moment, dream=replace(moment.dream, readings=told)))
        world.step(action)
        return world.snapshot().dream.z

    assert not torch.equal(after(3, 0), after(1, 0))
    gauges.meaning[0, 3] = 1
    assert torch.equal(after(3, 0), after(1, 0))
    assert not torch.equal(after(3, 9), after(1, 9))


def test_a_dream_whose_last_health_is_gone_is_over_and_stands_still(tmp_path: Path) -> None:
    world = load_world(tiny_world(tmp_path / "w", config=GAUGING))
    gauges = world._engine.model.gauges
    assert gauges is not None
    change(gauges, 1)
    gauges.steps.fill_(-1)
    world.reset(0)
    start = world.snapshot()
    assert start.dream.readings is not None
    told = start.dream.readings._replace(value=torch.tensor([[0, 2]]), shown=torch.tensor([[0, 2]]))
    world.restore(replace(start, dream=replace(start.dream, readings=told)))
    assert not any(world.step(1).info.over for _ in range(4))  # nothing tells that health is what counts
    gauges.ends[1] = 1
    world.restore(replace(start, dream=replace(start.dream, readings=told)))
    frames = [world.step(1) for _ in range(5)]
    # 2, 1, 0: and that is seen a tick later.
    assert [f.info.over for f in frames] == [False, False, True, True, True]
    assert np.array_equal(frames[2].image, frames[4].image)
    assert not np.array_equal(frames[1].image, frames[2].image)
    assert [f.info.tick for f in frames] == list(range(start.dream.tick + 1, start.dream.tick + 6))
    moment = world.unpack_state(world.pack_state(world.snapshot()))
    world.restore(moment)
    assert world.step(2, paint=False).info.over and moment.hash() != world.snapshot().hash()


def test_what_actions_amount_to_and_what_ends_a_game_is_counted() -> None:
    """Action 1 takes a step, action 2 a shot that costs one; without ammunition it moves nobody."""
    episodes, values, poses = [], [], []
    for died in (True, True, False):
        actions = np.tile([0, 1, 2, 2], 40)
        ammo = np.maximum(50 - np.concatenate(([0], np.cumsum(actions == 2))), 0)
        health = np.linspace(90, 0 if died else 20, len(ammo)).round().astype(np.int64)
        health[:-1] = health[:-1].clip(min=1)
        pose = np.stack((np.concatenate(([0], np.cumsum(actions == 1))), 0 * ammo, 0 * ammo), 1) * 0.01
        frames = np.zeros((len(ammo), 2, 2, 3), np.uint8)
        blank = np.zeros(len(actions))
        episodes.append(Episode({"terminated": died}, frames, actions, blank, None, None, blank))
        values.append(np.stack((ammo, health), 1))
        poses.append(pose.astype(np.float32))
    assert meanings(episodes, values, poses, 4).tolist() == [[0, 1, 0, 3], [0, 1, 2, 3]]
    assert endings(episodes, values).tolist() == [0, 1]


def test_scenes_begin_with_enough_of_what_ends_a_dream() -> None:
    model = tiny_model(config=GAUGING)
    assert model.gauges is not None
    health = np.array([90, 59, 60, 0])
    told = np.stack((np.zeros(4, np.int64), health), 1)
    blank = np.zeros(3)
    header = {"variables": ["AMMO", "HEALTH"]}
    frames = np.zeros((4, HEIGHT, WIDTH, 3), np.uint8)
    episode = Episode(header, frames, blank, blank, None, None, blank, variables=told)
    assert all(_hale(model, episode, tick) for tick in range(4))
    model.gauges.ends[1] = 1
    assert [_hale(model, episode, tick) for tick in range(4)] == [True, False, True, False]
    assert all(at == 1 for _, at in choose_scenes([episode], 1, 1, lambda episode, tick: tick == 1))


def test_boxes_belong_to_gauges() -> None:
    with pytest.raises(WorldError, match="boxes"):
        CastConfig(("imp",), gauges=("AMMO",), boxes=(1, 2, 3))


def test_the_stage_counts_glyphs_and_changes_and_learns(tmp_path: Path) -> None:
    root = cast_data(tmp_path / "data")
    gauges = some_gauges()
    for folder in [f for split in ("train", "val") for f in (root / split).iterdir()]:
        episode = read_episode(folder)
        ticks = len(episode.frames)
        ammo, health = 120 - np.cumsum(np.arange(ticks) % 4 == 3), np.full(ticks, 90)
        told = np.stack((ammo, health), 1).astype(np.int32)
        late = torch.from_numpy(np.concatenate((told[:1], told[:-1]))).long()
        frames = torch.from_numpy(np.array(episode.frames)).permute(0, 3, 1, 2).float() / 127.5 - 1
        written = ((gauges.write(frames, late) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
        arrays = {k: v if v is None else np.array(v) for k, v in vars(episode).items() if k != "header"}
        arrays |= {"frames": written, "variables": told}
        shutil.rmtree(folder)
        write_episode(folder, Episode(episode.header | {"variables": ["AMMO", "HEALTH"]}, **arrays))
    train, val = dataset(root, "train"), dataset(root, "val")
    world = tiny_model(config=GAUGING)
    assert world.gauges is not None
    world.gauges.glyphs.zero_()
    stage = GaugesStage(world, train, val, "cpu")
    assert numbers(train.episodes[0], GAUGED)[3].tolist() == [119, 90]
    assert sorted(set(world.gauges.steps[:CHANGES].tolist())) == [-1.0, 0.0]
    assert set(world.gauges.steps[CHANGES:].tolist()) == {0.0}
    optimizer = torch.optim.Adam(stage.model.parameters(), 0.01)
    losses = []
    for _ in range(6):
        loss, _ = stage.loss(stage.batch(np.random.default_rng(0), 0.0), 0.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    scores = stage.preview(tmp_path / "glyphs.png")
    assert scores["read"] == 1.0 and math.isfinite(scores["nats"])
