"""What a motion makes of what is seen: the geometry, and that trunk and head are told of it."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from tiny import TINY, tiny_model
from world_model.carry import DEPTHS, Carry
from world_model.dynamics import Step
from world_model.field import centres
from world_model.map import SEEN_CHANNELS
from world_model.training.run import foreign_stages

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
