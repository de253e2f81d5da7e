"""How a tick moves a player who has no map: stride, odometer, and the walls that stop them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from one_room import ROOM, keyframes
from tiny import HEIGHT, LATENT_GRID, RECALLING, STRIDING, WIDTH, tiny_model
from world_model.place import HISTORY, Place, PlaceModel, Stride
from world_model.recall import Views, Walls, centres, turned_back
from world_model.recollection import (
    BODY,
    COARSE_CHANNELS,
    DEPTH_CHANNEL,
    KNOWN_CHANNEL,
    LEEWAY,
    Rangefinder,
    Recollection,
    nothing_held,
)
from world_model.settle import Alignment, fuse
from world_model.training.stride_stage import Steps, walk_loss
from world_model.training.survey_stage import SurveyBatch, odometer_loss, varied


@pytest.fixture
def recollection() -> Recollection:
    found = tiny_model(config=RECALLING).dynamics.recollection
    assert found is not None
    return found.requires_grad_(False)


@torch.no_grad()
def walks_ahead(recollection: Recollection) -> None:
    """Two fiftieths ahead a tick, whatever the action."""
    told = recollection.stride.gait.out
    nn.init.zeros_(told.weight)
    nn.init.zeros_(told.bias)
    told.bias[9] = 2.0


def test_in_a_world_with_a_map_a_stride_knows_rest_and_walls() -> None:
    place = tiny_model(config=STRIDING).dynamics.place
    assert place is not None and isinstance(place.motion, Stride)
    out = place.motion.gait.out
    nn.init.zeros_(out.weight)
    nn.init.zeros_(out.bias)
    action, start = torch.tensor([0]), PlaceModel.nowhere(1, "cpu")
    moving = start._replace(motion=torch.tensor([[0.02, 0.0, 0.1]]))
    with torch.no_grad():
        torch.testing.assert_close(place.move(moving, action, action).pose, start.pose)
        out.bias[0] = 0.5  # half of the last way ahead, for as long as nothing is in the way
        ahead = place.move(moving, action, action)
        torch.testing.assert_close(ahead.motion[0, 0], torch.tensor(0.01))
        nn.init.constant_(place.map.surfaces.walls.embed, -0.02)
        torch.testing.assert_close(place.move(moving, action, action).pose[:, :2], start.pose[:, :2])


def test_walls_that_are_remembered_stop_the_player(recollection: Recollection) -> None:
    views = keyframes([[0.8, 0.0, 0.0]], recollection.columns)
    walks_ahead(recollection)
    place = PlaceModel.nowhere(1, "cpu")
    for _ in range(40):
        place = recollection.move(place, torch.tensor([1]), torch.tensor([0]), views)
    assert 0.9 < float(place.pose[0, 0]) < ROOM
    nothing = nothing_held(1, 1, recollection.columns, (160, 256), torch.device("cpu"))
    for _ in range(5):
        place = recollection.move(place, torch.tensor([1]), torch.tensor([0]), nothing)
    assert float(place.pose[0, 0]) > ROOM


def test_a_wall_that_is_seen_now_stops_the_player_who_remembers_nothing(recollection: Recollection) -> None:
    walks_ahead(recollection)
    told = recollection.rangefinder.columns[-1]
    assert isinstance(told, nn.Conv2d) and told.bias is not None
    nn.init.zeros_(told.weight)
    nothing = nothing_held(1, 1, recollection.columns, (160, 256), torch.device("cpu"))
    moved = []
    for depth in (0.04, 1.0):
        nn.init.constant_(told.bias, math.log(depth) + 1)
        place = PlaceModel.nowhere(1, "cpu")
        here = recollection.walls(torch.zeros(1, 4, *LATENT_GRID))
        felt = recollection.felt(nothing, place, here)
        moved.append(float(recollection.move(place, torch.tensor([1]), torch.tensor([0]), felt).pose[0, 0]))
    assert 0.0 < moved[0] < 0.02 and moved[1] > 0.03


def test_a_wall_across_an_open_door_is_not_believed_in(recollection: Recollection) -> None:
    """A network tells depths between near and far; who looks through there knows better."""
    walks_ahead(recollection)
    nowhere = PlaceModel.nowhere(1, "cpu")
    views = keyframes([[0.0, 0.0, 0.0]], recollection.columns)
    views = views._replace(wall=torch.full_like(views.wall, 0.05))
    alone = recollection.move(nowhere, torch.tensor([1]), torch.tensor([0]), views)
    assert float(alone.pose[0, 0]) < 0.05 - BODY + 1e-4
    others = keyframes([[-0.1, 0.0, 0.0], [-0.2, 0.0, 0.0]], recollection.columns)
    doubted = Views(
        *(torch.cat((a, b), i) for a, b, i in zip(views[:4], others[:4], (1, 1, 1, 2), strict=True))
    )
    free = recollection.move(nowhere, torch.tensor([1]), torch.tensor([0]), doubted)
    assert float(free.pose[0, 0]) == pytest.approx(0.04)


def test_what_the_player_sees_now_is_not_doubted(recollection: Recollection) -> None:
    """Reckoned a little wrong, all that is remembered may have seen past it."""
    walks_ahead(recollection)
    place = PlaceModel.nowhere(1, "cpu")
    others = keyframes([[-0.1, 0.0, 0.0], [-0.2, 0.0, 0.0]], recollection.columns)
    near = torch.full((1, recollection.columns), 0.05)
    felt = recollection.felt(others, place, near)
    stopped = recollection.move(place, torch.tensor([1]), torch.tensor([0]), felt)
    assert float(stopped.pose[0, 0]) < 0.05 - BODY + 1e-4
    free = recollection.move(place, torch.tensor([1]), torch.tensor([0]), others)
    assert float(free.pose[0, 0]) == pytest.approx(0.04)


def test_what_keyframes_tell_counts_for_walls_once_that_is_learned(recollection: Recollection) -> None:
    z, told = torch.randn(2, 4, *LATENT_GRID), torch.randn(2, COARSE_CHANNELS, *(4 * n for n in LATENT_GRID))
    told[:, KNOWN_CHANNEL] = 0
    alone, last = recollection.walls(z), recollection.rangefinder.beside[-1]
    assert isinstance(last, nn.Conv2d) and last.bias is not None
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    assert torch.equal(recollection.walls(z, told), alone)
    nn.init.normal_(last.weight)
    changed = recollection.walls(z, told)
    assert not torch.equal(changed, alone) and torch.equal(recollection.walls(z), alone)


def test_a_wall_that_keyframes_show_is_where_they_show_it(recollection: Recollection) -> None:
    nn.init.normal_(recollection.rangefinder.beside[-1].weight)  # type: ignore[arg-type]
    z, told = torch.randn(1, 4, *LATENT_GRID), torch.randn(1, COARSE_CHANNELS, *(4 * n for n in LATENT_GRID))
    told[:, KNOWN_CHANNEL], told[:, DEPTH_CHANNEL] = 0.0, math.log(0.3)
    told[:, KNOWN_CHANNEL, :, :5] = 1.0
    told[:, KNOWN_CHANNEL, 0] = 1.0  # ceiling that is known says nothing of the wall below
    walls = recollection.walls(z, told)[0]
    torch.testing.assert_close(walls[:5], torch.full((5,), 0.3))
    torch.testing.assert_close(walls[5:], recollection.rangefinder(z, told).exp()[0, 5:])


def test_between_two_walls_the_player_stands_still(recollection: Recollection) -> None:
    """Pushed from one to the other and back he would shake."""
    wall = torch.full((1, 2), 1.0)
    corner = Walls(
        torch.tensor([[[0.1, -1.0], [-1.0, 0.1]]]), torch.tensor([[[0.1, 1.0], [1.0, 0.1]]]), wall > 0
    )
    at = torch.tensor([[0.1 - BODY, 0.1 - BODY]])
    for way in ([0.01, 0.01], [0.01, 0.004], [0.02, -0.0003]):
        assert torch.equal(recollection._beside(corner, at, at + torch.tensor([way])), at)
    below = at - torch.tensor([[0.0, 0.008]])
    until = recollection._beside(corner, below, below + torch.tensor([[0.01, 0.02]]))
    torch.testing.assert_close(until, at)
    along = recollection._beside(corner, at, at + torch.tensor([[0.01, -0.01]]))
    torch.testing.assert_close(along, at + torch.tensor([[0.0, -0.01]]))


def test_who_is_too_near_to_a_wall_is_pushed_out(recollection: Recollection) -> None:
    wall = Walls(torch.tensor([[[0.1, -1.0]]]), torch.tensor([[[0.1, 1.0]]]), torch.ones(1, 1) > 0)
    at = torch.tensor([[0.09, 0.0]])
    for _ in range(5):
        at = recollection._beside(wall, at, at + torch.tensor([[0.01, 0.0]]))
    assert float(at[0, 0]) <= 0.1 - BODY + LEEWAY + 1e-6
    again = recollection._beside(wall, at, at + torch.tensor([[0.01, 0.0]]))
    assert torch.equal(recollection._beside(wall, again, again + torch.tensor([[0.01, 0.0]])), again)


def test_walls_are_told_where_they_are_seen() -> None:
    wide = Rangefinder(4, (2, 16))
    nn.init.normal_(wide.beside[-1].weight)  # type: ignore[arg-type]
    z, told = torch.randn(1, 4, 2, 16), torch.randn(1, COARSE_CHANNELS, 8, 64)
    before = wide(z, told)
    told[:, :, :, 48:] = 0
    changed = (wide(z, told) - before)[0].detach().abs()
    assert float(changed[:32].max()) == 0 and float(changed[-8:].min()) > 0


def test_who_walks_into_a_wall_slides_along_it(recollection: Recollection) -> None:
    walks_ahead(recollection)
    views = keyframes([[0.8, 0.0, 0.0]], recollection.columns)
    place = PlaceModel.nowhere(1, "cpu")
    place = place._replace(pose=torch.tensor([[ROOM - 0.04, 0.0, math.pi / 4]]))
    moved = recollection.move(place, torch.tensor([1]), torch.tensor([0]), views)
    assert float(moved.pose[0, 0]) < ROOM - BODY + 1e-4
    assert float(moved.pose[0, 1]) > 0.02 and float(moved.motion[0, :2].norm()) < 0.035


def test_motion_is_linear_in_the_last_one(recollection: Recollection) -> None:
    def moved(times: float) -> torch.Tensor:
        place = PlaceModel.nowhere(1, "cpu")._replace(motion=torch.tensor([[0.01, 0.004, 0.05]]) * times)
        told: torch.Tensor = recollection.stride(place, torch.tensor([1]), torch.tensor([2]))
        return told

    doubled, single, none = (moved(times) for times in (2.0, 1.0, 0.0))
    torch.testing.assert_close(doubled - single, single - none, rtol=1e-4, atol=1e-7)
    assert not torch.equal(single, none)


def straight_walk(ticks: int) -> Steps:
    """One walk, as `walks_ahead`."""
    motion = torch.tensor([0.04, 0.0, 0.0]).repeat(1, ticks, 1)
    none = torch.zeros(1, ticks, dtype=torch.long)
    return Steps(motion, motion, torch.zeros(1, ticks, HISTORY, dtype=torch.long), none, none, none)


def test_a_stride_is_judged_by_where_its_own_motion_leads(recollection: Recollection) -> None:
    walks_ahead(recollection)
    assert float(walk_loss(recollection.stride, straight_walk(6))) == pytest.approx(0, abs=1e-4)
    recollection.stride.gait.out.bias[9] = 2.02
    short, long = (float(walk_loss(recollection.stride, straight_walk(ticks))) for ticks in (1, 6))
    assert long > 1.5 * short > 0


def test_a_stride_is_not_judged_by_walls(recollection: Recollection) -> None:
    walks_ahead(recollection)
    walk = straight_walk(6)
    motion = walk.motion.clone()
    motion[:, 3:] = 0  # it runs into something
    assert float(walk_loss(recollection.stride, walk._replace(motion=motion))) == pytest.approx(0, abs=1e-4)


def test_an_odometer_learns_how_far_off_it_is() -> None:
    told, truth = torch.zeros(1, 3), torch.tensor([[2.0, -2.0, 0.0]])
    guesses = torch.tensor([0.5, 1.0, 2.0, 4.0, 8.0])
    losses = [float(odometer_loss(told, truth, guess[None])) for guess in guesses]
    assert int(np.argmin(losses)) == 2
    assert float(odometer_loss(truth, truth, guesses[:1])) < min(losses)


def test_places_are_reckoned_in_full_precision(recollection: Recollection) -> None:
    world = tiny_model(config=RECALLING).for_inference(torch.bfloat16)
    assert world.dynamics.recollection is not None
    assert {p.dtype for p in world.dynamics.recollection.stride.parameters()} == {torch.float32}
    assert next(world.dynamics.recollection.rangefinder.parameters()).dtype == torch.bfloat16


def test_an_odometer_is_believed_when_it_is_far_off_or_nothing_else_is_known(
    recollection: Recollection, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = torch.zeros(1, 3, HEIGHT, WIDTH, dtype=torch.uint8)
    nowhere = PlaceModel.nowhere(1, "cpu")
    known = nowhere._replace(history=torch.zeros_like(nowhere.history))

    def moved(place: Place, told: list[float], error: float = 0.0004) -> list[float]:
        seen = torch.tensor([told]), torch.tensor([error])
        monkeypatch.setattr(recollection.odometer, "forward", lambda *_: seen)
        found: list[float] = recollection.correct(picture, picture, place, place).motion[0].tolist()
        return found

    assert moved(known, [0.001, 0.0, 0.5]) == pytest.approx([0.0, 0.0, 0.0], abs=1e-5)
    assert moved(known, [0.05, 0.0, 0.5]) == pytest.approx([0.05, 0.0, 0.0], abs=1e-3)
    assert moved(known, [0.05, 0.0, 0.5], error=0.1) == pytest.approx([0.0, 0.0, 0.0], abs=1e-3)
    assert moved(nowhere, [0.05, 0.0, 0.5]) == pytest.approx([0.05, 0.0, 0.5], abs=1e-3)


def test_an_alignment_counts_as_far_as_it_is_to_be_trusted() -> None:
    place = PlaceModel.nowhere(1, "cpu")._replace(variance=torch.full((1, 3), 1e-5))
    motion = torch.tensor([[0.01, 0.0, 0.02]])
    sure, unsure = (fuse(place, Alignment(motion, torch.full((1, 3), v))) for v in (-12.0, 2.0))
    assert 0.005 < float(sure.pose[0, 0]) <= 0.01 and float(sure.variance[0, 0]) < 5e-6
    assert float(unsure.pose[0, 0]) < 0.001 and float(unsure.variance[0, 0]) > 9e-6
    began = PlaceModel.nowhere(1, "cpu")._replace(variance=torch.zeros(1, 3))  # where coordinates begin
    assert bool((fuse(began, Alignment(motion, torch.full((1, 3), -12.0))).pose == 0).all())


def test_a_picture_after_a_turn_is_turned_back(recollection: Recollection) -> None:
    lens, aspect, turn = recollection.lens, recollection.aspect, 0.1
    right = centres(256, torch.device("cpu")) * lens.spread
    angle = -torch.atan(right)  # to the left of where one looks
    before = torch.stack((angle.cos(), angle.sin(), angle), 0)[None, :, None].expand(-1, -1, 160, -1)
    after = torch.stack(((angle + turn).cos(), (angle + turn).sin(), angle + turn), 0)[None, :, None]
    found, seen = turned_back(after.expand(-1, -1, 160, -1), torch.tensor([turn]), lens, aspect)
    assert 0.8 < float(seen.mean()) < 1.0
    torch.testing.assert_close(found, before * seen, atol=0.01, rtol=0)


def test_a_step_in_a_mirror_is_a_step_in_a_mirror() -> None:
    torch.manual_seed(0)
    pictures = np.random.default_rng(0).integers(0, 190, (32, HEIGHT, WIDTH, 3), np.uint8)
    depths = torch.rand(32, 64)
    some = Steps(*(torch.zeros(32, 3),) * 2, *(torch.zeros(32),) * 4)
    batch = SurveyBatch(pictures, depths, depths, depths, pictures, pictures, some)
    made = varied(batch)
    assert made.turned is not None and np.array_equal(made.before, made.after)
    for i in range(32):
        for got, mirrored in (
            (made.pictures[i], not torch.equal(made.pictured[i], depths[i])),
            (made.before[i], float(made.turned[i, 2]) < 0),
        ):
            expected = pictures[i, :, ::-1] if mirrored else pictures[i]
            gain = got.sum((0, 1)) / expected.sum((0, 1))
            assert np.abs(gain - 1).max() < 0.32
            assert np.abs(got - expected * gain).max() < 3
    assert {float(s) for s in made.turned[:, 2]} == {1.0, -1.0}
    assert torch.equal(made.turned[:, 0], torch.ones(32))


def test_walls_of_keyframes_are_measured_in_their_pictures(recollection: Recollection) -> None:
    columns = recollection.columns
    views = nothing_held(1, 2, columns, (HEIGHT, WIDTH), torch.device("cpu"))
    z = torch.randn(1, 2, 4, *LATENT_GRID)
    dark = recollection.own(views, z).wall
    bright = recollection.own(views._replace(image=views.image + 200), z).wall
    assert dark.shape == (1, 2, columns) and not torch.allclose(dark, bright)
    assert torch.equal(dark, recollection.own(views, -z).wall)
    blank = views._replace(image=views.image[:, :, :, :0])
    assert not torch.allclose(recollection.own(blank, z).wall, recollection.own(blank, -z).wall)
