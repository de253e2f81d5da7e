"""A pose is put right by the pixels of a picture."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from test_cast import CLIP, IMP, a_cast, open_space, things
from world_model.focus import COARSE, fitted, focused
from world_model.place import compose, motion_between
from world_model.things import Camera

BACKDROP = torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1


def _painted(pose_F3: Tensor) -> Tensor:
    """A backdrop that moves aside with y, turns with the heading and grows with x."""
    grow, turn = 1 - 3 * pose_F3[:, 0], pose_F3[:, 2]
    rows = torch.stack((grow * turn.cos(), -turn.sin(), 4 * pose_F3[:, 1]), 1)
    more = torch.stack((turn.sin(), grow * turn.cos(), torch.zeros_like(turn)), 1)
    grid = F.affine_grid(0.5 * torch.stack((rows, more), 1), (len(pose_F3), 3, 40, 64), align_corners=False)
    whole = F.avg_pool2d(BACKDROP, 5, 1, 2).expand(len(pose_F3), -1, -1, -1)
    return F.grid_sample(whole, grid, align_corners=False)


def test_a_pose_is_found_by_the_pixels_though_something_stands_in_the_view() -> None:
    true = torch.tensor([[0.02, -0.01, 0.3], [-0.03, 0.02, -0.2]])
    pictures = _painted(true)
    pictures[:, :, 20:, 30:44] = 1.0  # a monster
    start = compose(true, torch.tensor([[0.006, -0.005, 0.02], [-0.006, 0.004, -0.015]]))
    found = focused(_painted, pictures[:, :, :34], start, torch.Generator().manual_seed(1))
    before, after = (motion_between(true, pose).abs().amax(0) for pose in (start, found))
    assert (before > 0.004).all()
    assert (after < torch.tensor([0.0015, 0.0015, 0.003])).all()


def test_what_is_right_stays_and_chance_is_the_seeds() -> None:
    true = torch.tensor([[0.0, 0.0, 0.1]])
    found = [focused(_painted, _painted(true), true, torch.Generator().manual_seed(s)) for s in (3, 3, 4)]
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
    assert motion_between(true, found[2]).abs().max() < 0.002


CAMERA = Camera(torch.tensor(1.0), 0.1, 0.5, 160 / 256)
HERE = torch.zeros(1, 3)
NONE = torch.zeros(4, dtype=torch.bool)


def test_things_are_put_where_the_picture_shows_them_and_as_it_does() -> None:
    sprites = a_cast().sprites
    sprites.paint.data[1:3, :3, :4] = torch.tensor([0.9, -0.7])[:, None, None, None]  # two looks of an imp
    true = things((IMP, 2, 0.5, 0.06), (IMP, 1, 0.7, -0.2), (CLIP, 3, 0.4, -0.15))
    behind = torch.zeros(1, 3, 160, 256)
    seen = sprites(true, HERE, CAMERA, open_space, (160, 256))
    picture = (behind * (1 - seen[:, 3:]) + 2 * seen[:, :3] - seen[:, 3:])[:, :, :140]
    told = things((IMP, 1, 0.62, 0.045), (IMP, 1, 0.7, -0.23), (CLIP, 3, 0.42, -0.15))
    resident = torch.tensor([False, False, True, False])
    told_by = (picture, behind[:, :, :140], HERE, CAMERA, open_space)
    found = fitted(sprites, told, *told_by, resident)
    assert found.look[0, :3].tolist() == [2, 1, 3]
    off = (found.at - true.at)[0, :2, :2].norm(dim=1)
    assert (off < 0.02).all() and off[0] < (told.at - true.at)[0, 0, :2].norm() / 4
    assert torch.equal(found.at[0, 2], told.at[0, 2])  # what is always there stays
    again = fitted(sprites, true, *told_by, NONE)
    pixel = 2 * COARSE / 256 * 0.7
    assert (again.at - true.at).abs().max() <= pixel and torch.equal(again.look, true.look)
