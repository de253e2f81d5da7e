"""The map as surfaces: a square room whose distances are known, looked at and walked in."""

from __future__ import annotations

import math

import pytest
import torch

from tiny import LATENT_GRID, tiny_model
from world_model.atlas import Atlas
from world_model.field import COARSE, EXTENT, PAINT_CHANNELS, ROOM, Surfaces
from world_model.place import Place, PlaceModel
from world_model.settle import Aligner, settle
from world_model.tokenizer import Decoder

HALF = 0.5
"""Half the width of the room."""
TILE = 0.125


def room() -> Surfaces:
    """Walls at x, y = +-HALF; floor and ceiling 0.1 below and 0.2 above the eye; 90 degrees of view."""
    torch.manual_seed(0)
    surfaces = Surfaces(256, (6, 8, 8, 10, 8, 10), TILE, (-0.1, 0.2))
    at = ((torch.arange(256) + 0.5) * 2 / 256 - 1) * EXTENT
    distance = HALF - torch.maximum(at.abs()[:, None], at.abs())
    with torch.no_grad():
        surfaces.walls.embed.copy_(distance[None, None])
        surfaces.spread.fill_(1.0)
    return surfaces


def at(x: float, y: float, heading: float) -> torch.Tensor:
    return torch.tensor([[x, y, heading]])


@pytest.mark.parametrize("heading", [0.0, 0.5 * math.pi, math.pi, -0.5 * math.pi])
def test_the_wall_ahead_is_as_far_as_it_is(heading: float) -> None:
    view = room().view(at(0.1, 0.0, heading), 20, 32)
    ahead = {0.0: 0.4, math.pi: 0.6}.get(heading, 0.5)
    # Depth is perpendicular to the picture, so a wall square to it is equally deep along its width.
    horizon = view.depth[0, 10, 12:20]
    torch.testing.assert_close(horizon, torch.full_like(horizon, ahead), rtol=0, atol=0.003)
    assert bool((view.wall[0, 10] == 1).all())


def test_the_picture_shows_ceiling_above_and_floor_below() -> None:
    view = room().view(at(0.0, 0.0, 0.0), 20, 32)
    assert bool((view.wall[0, 0, 16] == 0) & (view.wall[0, -1, 16] == 0))
    torch.testing.assert_close(view.point[0, 0, :, 2], torch.full((32,), 0.2), rtol=0, atol=1e-4)
    torch.testing.assert_close(view.point[0, -1, :, 2], torch.full((32,), -0.1), rtol=0, atol=1e-4)


def test_left_in_the_picture_is_left_in_the_world() -> None:
    point = room().view(at(0.0, 0.0, 0.0), 20, 32).point[0, 10].detach()
    assert float(point[0, 1]) > 0.4 and float(point[-1, 1]) < -0.4


def test_points_seen_from_two_places_wear_the_same_paint() -> None:
    surfaces = room()
    here = surfaces.view(at(0.0, 0.0, 0.0), 20, 32).point[0, 10, 16]
    same = here + torch.tensor([0.0, TILE, 0.0])
    fine, coarse = surfaces.fine(torch.stack((here, same))), surfaces.coarse(torch.stack((here, same)))
    own = PAINT_CHANNELS  # the first fine level knows each place apart, the others repeat
    torch.testing.assert_close(fine[0, own:], fine[1, own:], rtol=0, atol=1e-4)
    assert not torch.allclose(fine[0, :own], fine[1, :own], atol=1e-3)
    assert coarse.shape == (2, PAINT_CHANNELS * len(COARSE))


def test_paint_is_continuous() -> None:
    surfaces = room()
    line = torch.linspace(-0.3, 0.3, 4001)[:, None] * torch.tensor([0.3, 1.0, 0.2])
    jump = surfaces.fine(line).detach().diff(dim=0).abs().max()
    assert float(jump) < 0.02, "a step of a thousandth of a tile must not change the paint much"


def test_pictures_teach_walls_paint_and_field_of_view() -> None:
    surfaces = room()
    read = surfaces.read(at(0.1, 0.05, 0.3), 20, 32, fine=True)
    read.square().sum().backward()
    for parameter in (surfaces.walls.embed, surfaces.spread, *surfaces.fine.embed):
        assert parameter.grad is not None and bool(parameter.grad.any())


def walking() -> PlaceModel:
    place = tiny_model().dynamics.place
    assert place is not None
    place.map.surfaces = room()
    return place


class Stride(torch.nn.Module):
    """Walks ahead by a step, through anything."""

    def forward(self, place: Place, *_: object) -> torch.Tensor:
        return torch.tensor([0.04, 0.0, 0.0]).expand_as(place.pose)


def test_nobody_gets_through_a_wall_but_slides_along_it() -> None:
    model = walking()
    model.motion = Stride()  # type: ignore[assignment]
    place = PlaceModel.nowhere(1, "cpu")._replace(pose=at(0.3, 0.0, 0.5))
    action = torch.zeros(1, dtype=torch.long)
    for _ in range(40):
        before = place
        with torch.no_grad():
            place = model.move(place, action, action)
        assert float(model.map.surfaces.walls(place.pose[:, :2]).detach()) > ROOM
        # The motion that the model remembers is the one that happened.
        torch.testing.assert_close(place.motion[:, 2], torch.zeros(1))
    assert float(place.pose[0, 1]) > 0.4, "it slid along the wall into the corner"
    torch.testing.assert_close(place.pose, before.pose)


def test_a_dream_never_settles_within_a_wall() -> None:
    model = walking()
    torch.manual_seed(0)
    aligner = Aligner(4, LATENT_GRID)
    z = torch.randn(1, 12, 4, *LATENT_GRID)
    act = torch.zeros(1, 11, dtype=torch.long)
    within = PlaceModel.nowhere(1, "cpu")._replace(pose=at(HALF + 0.02, 0.0, 0.0))
    free = within._replace(pose=at(HALF - 0.1, 0.0, 0.0))
    with torch.no_grad():
        path = [free, *[within] * 11]
        settled = settle(model, aligner, Atlas(model, 4), path, z, act, act, torch.Generator().manual_seed(0))
        assert float(model.map.surfaces.walls(settled.place.pose[:, :2])) >= ROOM


def test_the_motion_model_feels_walls() -> None:
    model = walking()
    act = torch.zeros(1, dtype=torch.long)
    middle = PlaceModel.nowhere(1, "cpu")
    near = middle._replace(pose=at(HALF - 0.035, 0.0, 0.0))
    walls = model.map.surfaces.walls
    with torch.no_grad():
        free, close = model.motion(middle, act, act, walls), model.motion(near, act, act, walls)
        far = model.motion(middle._replace(pose=at(0.2, 0.1, 0.0)), act, act, walls)
    assert not torch.allclose(free, close)
    torch.testing.assert_close(free.sign(), far.sign())


def test_a_decoder_without_detail_is_the_plain_one_and_with_it_both_count() -> None:
    model = tiny_model()
    decoder: Decoder = model.tokenizer.decoder
    place = model.dynamics.place
    assert place is not None and decoder.detail is not None
    z = torch.randn(1, 4, *LATENT_GRID)
    with torch.no_grad():
        torch.testing.assert_close(decoder(z), decoder.layers(z))
        here = place.map.detail(at(0.1, 0.2, 0.3))
        there = place.map.detail(at(-0.1, 0.2, 0.3))
        assert not torch.allclose(decoder(z, here), decoder(z, there))
        assert not torch.allclose(decoder(z, here), decoder(-z, here))


def test_a_motion_model_comes_to_rest() -> None:
    model = walking()
    out = model.motion.out
    torch.nn.init.zeros_(out.weight)
    place, action = PlaceModel.nowhere(1, "cpu"), torch.zeros(1, dtype=torch.long)
    for told, rests in ((0.02, True), (0.05, False)):  # of units: 0.0004 and 0.001 half extents
        torch.nn.init.constant_(out.bias, told)
        for training in (True, False):
            with torch.no_grad():
                moved = model.train(training).move(place, action, action).motion
            assert bool((moved[0, :2] == 0).all()) == (rests and not training)
