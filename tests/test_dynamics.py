"""Trunk, head, place and memory: both ways of running agree, and each part does what it says."""

from __future__ import annotations

import math

import pytest
import torch

from tiny import ACTIONS, TINY, tiny_model
from world_model.atlas import Atlas
from world_model.dynamics import LayerState, Retrieved, Step, TrunkState
from world_model.map import SEEN_CHANNELS
from world_model.memory import KeyframeBank, describe
from world_model.place import Place, PlaceModel, Sight, compose, motion_between
from world_model.settle import Alignment, settle, sharpen

LATENT = (4, 2, 4)


def clip(ticks: int, batch: int = 2) -> tuple[torch.Tensor, ...]:
    g = torch.Generator().manual_seed(1)
    z = torch.randn(batch, ticks, *LATENT, generator=g) * 0.5
    act = torch.randint(0, len(ACTIONS), (batch, ticks), generator=g)
    phase = torch.randint(0, 5, (batch, ticks), generator=g)
    pose = torch.randn(batch, ticks, 3, generator=g)
    seen = torch.randn(batch, ticks, SEEN_CHANNELS, *LATENT[1:], generator=g)
    return z, act, phase, Step(pose, pose * 0.01, seen)  # type: ignore[return-value]


def memories(batch: int = 2) -> Retrieved:
    g = torch.Generator().manual_seed(2)
    return Retrieved(
        torch.randn(batch, 2, *LATENT, generator=g),
        torch.tensor([[3.0, 90.0]] * batch),
        torch.randn(batch, 2, 3, generator=g),
    )


@pytest.mark.parametrize("ticks", [1, 2, 9])
def test_clip_equals_steps(ticks: int) -> None:
    trunk = tiny_model().dynamics.trunk.double()
    z, act, phase, step = clip(ticks)
    z, step = z.double(), Step(*(s.double() for s in step))
    retrieved = Retrieved(*(t.double() for t in memories()))
    with torch.no_grad():
        whole = trunk(z, act, phase, step, retrieved)
        state = trunk.init_state(2)
        state = TrunkState(  # double all the way, so that the comparison is tight
            tuple(
                LayerState(
                    s.mamba._replace(conv=s.mamba.conv.double(), ssm=s.mamba.ssm.double()),
                    None if s.window is None else s.window.double(),
                )
                for s in state.layers
            ),
            0,
        )
        for t in range(ticks):
            now = Step(*(s[:, t] for s in step))
            out, state = trunk.step(z[:, t], act[:, t], phase[:, t], now, retrieved, state)
            for name, a, b in zip(out._fields, out, whole, strict=True):
                torch.testing.assert_close(a, b[:, t], rtol=0, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    assert state.filled == min(ticks, TINY.dynamics.window)


@pytest.mark.parametrize("changed", ["action", "phase", "keyframes", "motion", "seen"])
def test_every_input_reaches_the_output(changed: str) -> None:
    trunk = tiny_model().dynamics.trunk
    for layer in trunk.layers:
        if layer.reads_memory:
            torch.nn.init.constant_(layer.keyframes.gate, 1.0)
    z, act, phase, step = clip(3)
    retrieved = memories()
    with torch.no_grad():
        before = trunk(z, act, phase, step, retrieved).mean
        if changed == "action":
            act = (act + 1) % len(ACTIONS)
        elif changed == "phase":
            phase = (phase + 1) % 5
        elif changed == "keyframes":
            retrieved = retrieved._replace(frames=retrieved.frames.flip(0))
        elif changed == "motion":
            step = step._replace(motion=step.motion + 0.01)
        else:
            step = step._replace(seen=step.seen.flip(0))
        assert not torch.allclose(before, trunk(z, act, phase, step, retrieved).mean, atol=1e-5)


def test_trunk_does_not_see_the_future() -> None:
    trunk = tiny_model().dynamics.trunk
    z, act, phase, step = clip(6)
    with torch.no_grad():
        before = trunk(z, act, phase, step, memories()).mean
        z = torch.cat((z[:, :4], torch.randn_like(z[:, 4:])), 1)
        after = trunk(z, act, phase, step, memories()).mean
    torch.testing.assert_close(before[:, :4], after[:, :4])
    assert not torch.allclose(before[:, 4:], after[:, 4:])


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_perfect_head_paints_its_target_in_any_number_of_steps(steps: int) -> None:
    head = tiny_model().dynamics.head
    target = torch.rand(2, *LATENT) - 0.5
    head.forward = lambda *_: (target, None)  # type: ignore[method-assign]
    features = torch.zeros(2, 16 + SEEN_CHANNELS, *LATENT[1:])
    painted = head.sample(torch.randn(2, *LATENT), target, target, features, steps)
    torch.testing.assert_close(painted, target)


def test_motion_between_inverts_compose() -> None:
    start = torch.tensor([[0.1, -0.4, 2.0], [0.0, 0.0, -3.0]])
    motion = torch.tensor([[0.02, -0.01, 0.3], [0.1, 0.0, -0.5]])
    torch.testing.assert_close(motion_between(start, compose(start, motion)), motion)


def test_forward_at_heading_zero_moves_along_x() -> None:
    end = compose(torch.tensor([1.0, 2.0, 0.0]), torch.tensor([0.5, 0.0, math.pi / 2]))
    torch.testing.assert_close(end, torch.tensor([1.5, 2.0, math.pi / 2]))


class Seer(torch.nn.Module):
    """A localizer that sees one pose, with one variance."""

    def __init__(self, pose: list[float], variance: float) -> None:
        super().__init__()
        self.pose, self.variance = torch.tensor([pose]), variance

    def forward(self, _: torch.Tensor) -> Sight:
        return Sight(self.pose, torch.full((1, 3), math.log(self.variance)), self.pose[:, :2])


def looking(seer: Seer) -> PlaceModel:
    place = tiny_model().dynamics.place
    assert place is not None
    place.localizer = seer  # type: ignore[assignment]
    return place


def test_the_first_look_decides_and_later_ones_are_averaged() -> None:
    place = PlaceModel.nowhere(1, "cpu")
    place = looking(Seer([0.4, -0.2, 3.1], 1e-4)).look(place, torch.zeros(1, *LATENT))
    torch.testing.assert_close(place.pose, torch.tensor([[0.4, -0.2, 3.1]]), rtol=0, atol=1e-3)
    variance = place.variance
    # The heading lies across the seam of the circle: the average must not turn the long way round.
    place = looking(Seer([0.42, -0.2, -3.1], 1e-4)).look(place, torch.zeros(1, *LATENT))
    assert 0.4 < float(place.pose[0, 0]) < 0.42 and 3.1 < float(place.pose[0, 2]) < 3.19
    assert bool((place.variance < variance).all())


def test_a_wild_sight_moves_a_sure_place_little() -> None:
    sure = PlaceModel.nowhere(1, "cpu")._replace(variance=torch.full((1, 3), 1e-5))
    place = looking(Seer([0.9, 0.9, 1.0], 1e-4)).look(sure, torch.zeros(1, *LATENT))
    assert float(place.pose.abs().max()) < 0.01


def test_moving_keeps_the_history_and_adds_doubt() -> None:
    model = tiny_model().dynamics.place
    assert model is not None
    place = PlaceModel.nowhere(2, "cpu")
    place = place._replace(variance=torch.full((2, 3), 1e-5))
    with torch.no_grad():
        for action in (1, 2, 3):
            moved = model.move(place, torch.full((2,), action), torch.zeros(2, dtype=torch.long))
            torch.testing.assert_close(moved.pose, compose(place.pose, moved.motion))
            assert bool((moved.variance > place.variance).all())
            place = moved
    assert place.history[0, -3:].tolist() == [1, 2, 3]


class Compass(torch.nn.Module):
    """A map that shows its pose, plainly, of a place without walls."""

    def __init__(self) -> None:
        super().__init__()
        place = tiny_model().dynamics.place
        assert place is not None
        self.surfaces = place.map.surfaces

    def seen(self, pose: torch.Tensor) -> torch.Tensor:
        told = torch.stack((pose[:, 0], pose[:, 1], pose[:, 2].cos(), pose[:, 2].sin()), 1)
        return told[:, :, None, None].expand(-1, -1, *LATENT[1:])


class Reader(torch.nn.Module):
    """Reads what a `Compass` shows and halves the way each time, as one that learned it would at best."""

    def forward(self, z: torch.Tensor, seen: torch.Tensor) -> Alignment:
        there, here = (
            torch.stack((x[:, 0, 0, 0], x[:, 1, 0, 0], torch.atan2(x[:, 3, 0, 0], x[:, 2, 0, 0])), 1)
            for x in (z, seen)
        )
        return Alignment(0.5 * motion_between(here, there), torch.zeros(len(z), 3))


class Stroll(torch.nn.Module):
    """Walks an arc whatever is pressed."""

    def forward(self, place: Place, *_: object) -> torch.Tensor:
        return torch.tensor([0.02, 0.0, 0.05]).expand_as(place.pose)


def test_settling_finds_the_pose_from_which_the_map_shows_the_context() -> None:
    model = looking(Seer([0.3, 0.1, 0.2], 1e-2))  # sight is off by about a tenth
    model.map, model.motion = Compass(), Stroll()  # type: ignore[assignment]
    motion = torch.tensor([[0.02, 0.0, 0.05]])
    poses = [torch.tensor([[0.25, 0.05, 0.0]])]
    for _ in range(14):
        poses.append(compose(poses[-1], motion))
    z = model.map.seen(torch.cat(poses))[None]
    path = [PlaceModel.nowhere(1, "cpu")._replace(motion=motion) for _ in poses]
    act = torch.zeros(1, 14, dtype=torch.long)
    settled = settle(
        model, Reader(), Atlas(model, LATENT[0]), path, z, act, act, torch.Generator().manual_seed(0)
    )
    torch.testing.assert_close(settled.place.pose, poses[-1], rtol=0, atol=3e-3)
    way = torch.stack(poses[-4:], 1)
    torch.testing.assert_close(settled.track[:, -4:], way, rtol=0, atol=1e-2)
    torch.testing.assert_close(settled.track[:, -1], settled.place.pose)


def test_a_walk_that_is_a_little_off_is_led_back_by_its_last_frames() -> None:
    model = looking(Seer([0.3, 0.1, 0.2], 1e-2))
    model.map = Compass()  # type: ignore[assignment]
    poses = [torch.tensor([[0.02 * t, 0.01 * t, 0.05 * t]]) for t in range(8)]
    z = model.map.seen(torch.cat(poses))[None]
    off = torch.stack(poses, 1)
    off[:, -1] += torch.tensor([0.004, -0.003, 0.01])
    found = sharpen(model, Reader(), off, z, back=(0,), rounds=6)
    torch.testing.assert_close(found, poses[-1], rtol=0, atol=2e-4)


def frames(*seeds: int) -> list[torch.Tensor]:
    return [torch.randn(1, *LATENT, generator=torch.Generator().manual_seed(s)) for s in seeds]


def filled_bank(count: int, size: int = 4) -> KeyframeBank:
    bank = KeyframeBank.empty(1, size, LATENT, "cpu")
    for tick, z in enumerate(frames(*range(count))):
        bank = bank.offer(z, torch.zeros(1, 3), tick)
    return bank


def test_the_bank_takes_in_what_is_new_and_only_that() -> None:
    bank = filled_bank(2)
    assert int(bank.filled.sum()) == 2
    again = bank.offer(frames(0)[0] * 1.01, torch.zeros(1, 3), 9)
    assert again is bank


def test_a_full_bank_stays_bounded_and_keeps_its_first_frame() -> None:
    bank = filled_bank(30)
    assert bank.filled.shape == (1, 4) and bool(bank.filled.all())
    torch.testing.assert_close(bank.frames[0, 0], frames(0)[0][0])


def test_retrieval_finds_the_frame_that_looks_alike() -> None:
    bank = filled_bank(4)
    for wanted, z in enumerate(frames(0, 1, 2, 3)):
        noisy = z + 0.05 * torch.randn_like(z)
        assert int(bank.retrieve(noisy, 2)[0, 0]) == wanted


def test_descriptions_are_unit_vectors() -> None:
    z = torch.randn(3, *LATENT)
    torch.testing.assert_close(describe(z).norm(dim=1), torch.ones(3))
