"""What a motion makes of what is seen: the geometry, and that trunk and head are told of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tiny import HEIGHT, TINY, WIDTH, tiny_data, tiny_model, tiny_world
from world_model.carry import DEPTHS, Carry
from world_model.data.dataset import LatentDataset, load_split
from world_model.dynamics import Step
from world_model.field import centres
from world_model.map import SEEN_CHANNELS
from world_model.training.carry_stage import CarryStage
from world_model.training.run import _begin_with, foreign_stages

CARRYING = replace(TINY, dynamics=replace(TINY.dynamics, carry=3))
ROWS, COLUMNS = 40, 64


def moved(picture: Tensor, motion: tuple[float, float, float], depth: float = DEPTHS[0]) -> Tensor:
    """A picture (ROWS, COLUMNS) as all of it looks after a motion, if it is `depth` ahead then."""
    carry = Carry(4, 3, horizon=0.5)
    at = carry._from(torch.tensor([motion]), depth, ROWS, COLUMNS)
    out: Tensor = F.grid_sample(picture[None, None], at, padding_mode="border", align_corners=False)[0, 0]
    return out


def stripe(angle: float) -> Tensor:
    """A bright upright stripe at an angle to the left of ahead."""
    across = -torch.tan(torch.tensor(angle))
    return (
        torch.exp(-((centres(COLUMNS, across.device) - across) * 20).square()).expand(ROWS, COLUMNS).clone()
    )


def where(picture: Tensor) -> float:
    """The angle to the left at which the row in the middle is brightest."""
    across = centres(COLUMNS, picture.device)
    row = picture[ROWS // 2]
    return float(-torch.atan((across * row).sum() / row.sum()))


def test_after_a_turn_things_stand_at_the_other_angle() -> None:
    for angle, turn in ((0.0, 0.1), (0.3, 0.2), (-0.2, -0.25)):
        assert abs(where(moved(stripe(angle), (0.0, 0.0, turn))) - (angle - turn)) < 0.01


def test_a_step_ahead_magnifies_what_is_near_and_leaves_what_is_far() -> None:
    near, far = (moved(stripe(0.3), (0.05, 0.0, 0.0), depth) for depth in (0.25, 100.0))
    # 0.25 ahead after the step is 0.30 ahead before it.
    assert abs(torch.tensor(where(near)).tan() - 0.30 / 0.25 * torch.tensor(0.3).tan()) < 0.01
    assert abs(where(far) - 0.3) < 0.005


def test_a_step_to_the_left_moves_what_is_near_to_the_right() -> None:
    shifted = moved(stripe(0.0), (0.0, 0.05, 0.0), 0.25)
    assert abs(torch.tensor(where(shifted)).tan() + 0.05 / 0.25) < 0.01


def test_the_horizon_stays_where_a_status_bar_puts_it() -> None:
    carry = Carry(4, 3, horizon=0.4)
    at = carry._from(torch.tensor([[0.05, 0.0, 0.0]]), 0.25, ROWS, COLUMNS)[0, :, COLUMNS // 2, 1]
    rows = centres(ROWS, at.device)
    still = rows[(at - rows).abs().argmin()]
    assert abs(float(still) - (2 * 0.4 - 1)) < 1.5 / ROWS


def clip(ticks: int) -> tuple[Tensor, Tensor, Tensor, Step]:
    g = torch.Generator().manual_seed(3)
    z = torch.rand(2, ticks, 4, 2, 4, generator=g) - 0.5
    act, phase = (torch.randint(0, 4, (2, ticks), generator=g) for _ in range(2))
    pose = torch.randn(2, ticks, 3, generator=g)
    seen = torch.randn(2, ticks, SEEN_CHANNELS, 2, 4, generator=g)
    return z, act, phase, Step(pose, pose * 0.05, seen)


def test_clip_equals_steps_and_the_carry_reaches_the_mean() -> None:
    trunk = tiny_model(config=CARRYING).dynamics.trunk
    z, act, phase, step = clip(5)
    with torch.no_grad():
        whole = trunk(z, act, phase, step, None)
        state = trunk.init_state(2)
        for t in range(5):
            out, state = trunk.step(
                z[:, t], act[:, t], phase[:, t], Step(*(s[:, t] for s in step)), None, state
            )
            torch.testing.assert_close(out.mean, whole.mean[:, t], rtol=0, atol=2e-2)
            torch.testing.assert_close(out.carried, whole.carried[:, t], rtol=0, atol=1e-5)
        assert trunk.carry is not None
        torch.nn.init.zeros_(trunk.carry.lower[-1].weight)
        assert not torch.allclose(trunk(z, act, phase, step, None).mean, whole.mean, atol=1e-4)


def test_a_world_in_which_nothing_moves_has_no_such_stage() -> None:
    assert "carry" in foreign_stages(TINY) and "carry" not in foreign_stages(CARRYING)
    assert tiny_model().dynamics.trunk.carry is None


def test_the_stage_learns_and_minds_things_most(tmp_path: Path) -> None:
    boxes = np.zeros((41, 1, 5), np.int16)
    boxes[:, 0] = 1, 0, 0, WIDTH // 4, HEIGHT // 2
    episodes = [replace(e, labels=boxes) for e in load_split(tiny_data(tmp_path), "train")]
    rng = np.random.default_rng(0)
    latents = [rng.normal(size=(41, 4, 2, 4)).astype(np.float16) for _ in episodes]
    data = LatentDataset(episodes, latents, (0.0, 0.0), 4.0)
    world = tiny_model(config=CARRYING)
    stage = CarryStage(world, data, data, "cpu")
    carry, place = world.dynamics.trunk.carry, world.dynamics.place
    assert carry is not None and place is not None
    assert float(carry.spread) == float(place.map.surfaces.spread)
    batch = stage.batch(np.random.default_rng(1), 0.0)
    optimizer = torch.optim.Adam(stage.model.parameters(), 1e-2)
    losses = []
    for _ in range(8):
        loss, metrics = stage.loss(batch, 0.0)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] and set(metrics) == {"tick1", "tick2"}
    scores = stage.preview(tmp_path / "carry.png")
    assert {"carried", "carried_lively", "left", "left_lively"} == set(scores)
    assert (tmp_path / "carry.png").exists()


def test_a_trunk_that_begins_with_another_keeps_its_own_carry(tmp_path: Path) -> None:
    other = tiny_world(tmp_path / "world", seed=3, config=CARRYING)
    for kept in (True, False):
        trunk = tiny_model(seed=1, config=CARRYING).dynamics.trunk
        world = tiny_model(seed=1, config=CARRYING)
        _begin_with(world, other, "trunk", carried=kept)
        assert trunk.carry is not None and world.dynamics.trunk.carry is not None
        same = torch.equal(world.dynamics.trunk.carry.join.weight, trunk.carry.join.weight)
        assert same == kept
        assert not torch.equal(world.dynamics.trunk.down.weight, trunk.down.weight)
