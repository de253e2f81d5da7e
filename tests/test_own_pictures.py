"""What a world that recalls learns from the pictures of its own dreams."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tiny import RECALLING, TINY, tiny_data, tiny_model
from world_model import nearer
from world_model.data.dataset import LatentDataset, Recall
from world_model.data.episodes import list_episodes, read_episode
from world_model.data.remembered import Held
from world_model.model import WorldModel
from world_model.training import dynamics_stage, feel_stage, grain_stage, light_stage
from world_model.training.dynamics_stage import STAGES, DynamicsStage, own_way
from world_model.training.feel_stage import FeelStage
from world_model.training.grain_stage import GrainStage, roughness, windows
from world_model.training.light_stage import LightBatch, LightStage
from world_model.training.preview import RolloutPreview


def dataset(root: Path, world: WorldModel) -> LatentDataset:
    episodes = [read_episode(folder) for folder in list_episodes(tiny_data(root), "train")]
    rng = np.random.default_rng(0)
    latents = [rng.normal(0, 0.4, (len(e) + 1, 4, 2, 4)).astype(np.float16) for e in episodes]
    data, found = LatentDataset(episodes, latents, (0.0, 0.0), 20.0), world.dynamics.recollection
    if found is not None:
        data.remember(Recall(found.lens, found.aspect, world.config.dynamics.keyframes))
    return data


def train(stage: LightStage, batch: LightBatch, steps: int, rate: float) -> list[float]:
    """By how much it misses at each step on the same pictures, which are dull in one of two ways."""
    optimizer = torch.optim.Adam(stage.model.parameters(), rate)
    misses = []
    for step in range(steps):
        torch.manual_seed(step % 2)
        loss, metrics = stage.loss(batch, 0.0)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        misses.append(metrics["miss"])
    return misses


def dreaming(world: WorldModel, data: LatentDataset) -> DynamicsStage:
    settings = replace(STAGES["rollout"], batch_size=3)
    return DynamicsStage(settings, world, data, RolloutPreview(list(data.episodes), 1), "cpu")


def test_where_something_is_known_a_dream_is_held_to_its_own_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dynamics_stage, "PAINTED", 4)
    torch.manual_seed(0)
    world = tiny_model(config=RECALLING)
    data = dataset(tmp_path, world)
    stage = dreaming(world, data)
    clips = stage.batch(np.random.default_rng(0), 0.0)
    with torch.no_grad():
        way = own_way(world.dynamics, clips, 0.0)
        assert way.known is not None
        way = way._replace(known=(torch.rand_like(way.known) < 0.5).float())
        z = clips.z[:, :-1].clone()
        z[:, 20:22] += 1  # two moments were dreamed: their pictures are asked for first
        target, counts = stage._as_painted(clips, z, way)
    assert way.known is not None
    other = (target != clips.z[:, 1:]).any(2, keepdim=True).float()
    painted = counts.amin((0, 2, 3, 4)).bool() | other.amax((0, 2, 3, 4)).bool()
    assert torch.equal(other[:, painted], way.known[:, painted])
    assert torch.equal(counts[:, ~painted], 1 - way.known[:, ~painted]) and not other[:, ~painted].any()
    assert 4 <= int(painted.sum()) < len(painted) and painted[20:22].all()
    assert counts[:, painted].all()
    # It is what the encoder makes of the picture that is shown there.
    recollection, tick = world.dynamics.recollection, 20
    assert recollection is not None and way.views is not None
    views = way.views._replace(held=way.views.held[:, tick : tick + 1])
    with torch.no_grad():
        picture = world.tokenizer.decode(clips.z[:, tick + 1], recollection.detail(views, way.pose[:, tick]))
        seen = world.tokenizer.encode(picture.clamp(-1, 1))
    known = (way.known[:, tick] > 0).expand_as(seen)
    torch.testing.assert_close(target[:, tick][known], seen[known], rtol=0, atol=0.02)


def test_a_world_with_a_map_is_held_to_what_was_recorded(tmp_path: Path) -> None:
    world = tiny_model(config=TINY)
    stage = dreaming(world, dataset(tmp_path, world))
    clips = stage.batch(np.random.default_rng(0), 0.0)
    with torch.no_grad():
        target, counts = stage._as_painted(clips, clips.z[:, :-1], own_way(world.dynamics, clips))
    assert torch.equal(target, clips.z[:, 1:]) and counts.all()


def test_walls_are_learned_from_the_pictures_of_dreams(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feel_stage, "DREAMS", 2)
    monkeypatch.setattr(feel_stage, "PIECES", 1)
    torch.manual_seed(0)
    world = tiny_model(config=RECALLING)
    data = dataset(tmp_path, world)
    stage = FeelStage(world, data, data, "cpu")
    recollection = world.dynamics.recollection
    assert recollection is not None
    measured = {k: v.clone() for k, v in recollection.surveyor.state_dict().items()}
    optimizer = torch.optim.Adam(stage.model.parameters(), 3e-3)
    felt = []
    for step in range(feel_stage.AGAIN):
        loss, metrics = stage.loss(stage.batch(np.random.default_rng(step), 0.0), 0.0)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        felt.append(metrics["felt"])
    assert np.mean(felt[-10:]) < 0.7 * felt[0]
    assert all(torch.equal(v, measured[k]) for k, v in recollection.surveyor.state_dict().items())
    assert stage.preview(tmp_path / "none.png").keys() == {"felt_percent", "alone_percent"}


def test_light_is_learned_from_what_was_seen_from_afar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(light_stage, "FAR", 0.3)
    torch.manual_seed(0)
    world = tiny_model(config=RECALLING)
    data = dataset(tmp_path, world)
    stage = LightStage(world, data, data, "cpu")
    asked: list[list[float]] = []
    held = data.remembered.held

    def told(*args: Any) -> Held:
        asked.append(args[-1])
        return held(*args)

    monkeypatch.setattr(data.remembered, "held", told)
    others = {k: v.clone() for k, v in world.state_dict().items() if ".light." not in k}
    first = stage.batch(np.random.default_rng(0), 0.0)
    assert len(set(asked[0])) == len(first.stand) and max(asked[0]) < 0.3
    for at, views, least in zip(first.stand, zip(*first.views[1:4], strict=True), asked[0], strict=True):
        pose, _, there = views
        off = (pose[:, :2] - at[:2]).norm(dim=-1)[there[0]]
        assert len(off) == 1 or float(off.min()) >= least
    misses = train(stage, first, 30, 3e-3)
    assert np.mean(misses[-2:]) < 0.99 * np.mean(misses[:2])
    assert all(torch.equal(v, world.state_dict()[k]) for k, v in others.items())
    assert stage.preview(tmp_path / "seen.png").keys() == {"psnr"}
    assert (tmp_path / "seen.png").exists()


def test_grain_is_learned_from_how_rough_pictures_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(light_stage, "FAR", 0.3)
    monkeypatch.setattr(nearer, "BLURRED", (0.0, 0.1))  # in so small a room nothing is four times as far off
    monkeypatch.setattr(nearer, "TEXEL", 0.1)  # and pixels of so small a picture are wide
    torch.manual_seed(0)
    world = tiny_model(config=RECALLING)
    data = dataset(tmp_path, world)
    stage = GrainStage(world, data, data, "cpu")
    others = {k: v.clone() for k, v in world.state_dict().items() if ".grain." not in k}
    misses = train(stage, stage.batch(np.random.default_rng(0), 0.0), 60, 1e-2)
    assert np.mean(misses[-2:]) < 0.9 * np.mean(misses[:2])
    assert all(torch.equal(v, world.state_dict()[k]) for k, v in others.items())
    assert stage.preview(tmp_path / "seen.png").keys() == {"rough_percent"}
    assert (tmp_path / "seen.png").exists()


def test_every_second_picture_of_a_batch_is_near_a_wall(tmp_path: Path) -> None:
    world = tiny_model(config=RECALLING)
    data = dataset(tmp_path, world)
    near: list[float] = []
    any_of_them: list[float] = []
    for seed in range(30):
        batch = light_stage.draw(data, np.random.default_rng(seed), 2, tried=6)
        for number, stand in enumerate(batch.stand):
            where = next(
                (i, t)
                for i in range(len(data.episodes))
                for t, pose in enumerate(data.pose(i))  # type: ignore[arg-type]
                if np.allclose(pose, stand)
            )
            (near if number else any_of_them).append(float(np.median(data.remembered.walls(*where))))
    assert np.mean(near) < np.mean(any_of_them)


def test_roughness_tells_stripes_across_from_stripes_upwards() -> None:
    stripes = torch.zeros(1, 3, 64, 64)
    stripes[..., ::2] = 1.0
    (across, upwards), (turned_across, turned_upwards) = (
        [float(r.mean()) for r in roughness(x)[:2]] for x in (stripes, stripes.transpose(2, 3))
    )
    assert across > 0.9 and upwards < 0.01 and turned_upwards > 0.9 and turned_across < 0.01
    assert len(roughness(stripes)) == 2 * grain_stage.SIZES
    assert all(r.shape == windows(stripes[:, :1], 32).shape for r in roughness(stripes))
