"""What nobody has seen is made up, held like what was seen, and found again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from one_room import ASPECT, LENS, keyframes
from test_own_pictures import dataset
from tiny import IMAGINING, RECALLING, tiny_frames, tiny_model, tiny_world
from world_model.checkpoint import save_weights
from world_model.dream import LEAD, LOOKED_AHEAD, TURNING, DreamEngine
from world_model.dynamics import NOISE_STD
from world_model.imagination import LEVELS, PAINTED, STEPS, TICKS, Imagination
from world_model.memory import KeyframeBank, apart
from world_model.recall import doubted, finer, look
from world_model.state import DreamState
from world_model.training import imagine_stage
from world_model.training.imagine_stage import ImagineStage
from world_model.types import WorldError
from world_model.weights import IN_BYTES, SCALE, build_model, expected_tensors, stored_tensors
from world_model.world import load_world

LEFT = 2


class TwoPoints(Imagination):
    """Knows exactly what there is: 0.5 or -0.5, as likely as not, in each number."""

    def _films(self, tau: Tensor) -> list[Tensor]:
        return [tau]

    def _clean(self, noised: Tensor, films: list[Tensor], clue: Tensor) -> Tensor:
        t = films[0].view(-1, 1, 1, 1)
        return 0.5 * torch.tanh(0.5 * noised * t / ((1 - t) * NOISE_STD).square())


def started(batch: int = 1, seed: int = 3, frames_of: int = 0) -> tuple[DreamEngine, DreamState]:
    engine = DreamEngine(tiny_model(config=IMAGINING).for_inference(torch.float32))
    frames = np.stack([tiny_frames(6, seed=frames_of + i) for i in range(batch)])
    z = torch.stack([engine.encode(f) for f in frames])
    state = engine.start(z, np.zeros((batch, 5), np.int64), np.zeros(batch, np.int64), seed, frames)
    return engine, state


def turned(engine: DreamEngine, state: DreamState, ticks: int) -> list[DreamState]:
    states = []
    for _ in range(ticks):
        state = engine.tick(state, torch.full((len(state.z),), LEFT))
        states.append(state)
    return states


def test_a_flow_ends_at_one_of_the_things_that_may_be() -> None:
    torch.manual_seed(0)
    made = TwoPoints(4, (2, 4), 12).sample(torch.randn(64, 4, 2, 4), torch.zeros(64, 10, 8, 16))
    assert LEVELS[0] == 0 and LEVELS[-1] == 1 and len(LEVELS) == STEPS + 1
    assert float(made.std()) == pytest.approx(0.5, abs=0.05)  # a mean would be dull
    assert float((made.abs() - 0.5).abs().mean()) < 0.06
    assert 0.4 < float((made > 0).float().mean()) < 0.6


def test_what_nobody_saw_is_made_up_and_found_again() -> None:
    engine, state = started()
    assert not bool(state.bank.imagined.any())  # type: ignore[union-attr]
    states = turned(engine, state, 40)
    bank = states[-1].bank
    assert bank.imagined is not None and bank.images is not None
    made = (bank.imagined & bank.filled)[0].nonzero()[:, 0].tolist()
    assert made
    for slot in made:
        # Held as a picture of the flow's latent, from where it was looked for.
        born = int(bank.born[0, slot])
        vision = next(s.vision for s in reversed(states) if s.tick == born)
        assert vision is not None and int(vision.left[0]) == 1
        assert torch.equal(bank.pose[0, slot], vision.pose[0])
        picture = engine.decode(vision.x.clamp(-1, 1))[0]
        np.testing.assert_array_equal(bank.images[slot][0].permute(1, 2, 0).numpy(), picture)
    again = turned(*started(), 40)[-1]
    assert all(torch.equal(a, b) for a, b in zip(states[-1].tensors(), again.tensors(), strict=True))
    other = turned(*started(seed=4), 40)[-1]
    assert not torch.equal(other.vision.x, states[-1].vision.x)  # type: ignore[union-attr]


def test_a_view_is_begun_where_the_player_will_look() -> None:
    engine, state = started()
    before = state
    for after in turned(engine, state, 40):
        if int(after.vision.left[0]) == TICKS:  # type: ignore[union-attr]
            break
        before = after
    assert after.vision is not None
    assert before.tick % LOOKED_AHEAD == 0 or abs(float(before.place.motion[0, 2])) > TURNING
    motion = before.place.motion[0]
    turn = float(after.vision.pose[0, 2] - before.place.pose[0, 2])
    ahead = [float(LEAD * motion[2]) + side for side in (0.0, 1.2, -1.2)]
    assert min(abs(turn - a) for a in ahead) < 1e-5
    assert torch.equal(after.vision.pose[0, :2], before.place.pose[0, :2])


def test_nothing_is_made_up_where_it_was_already_nor_without_memory() -> None:
    engine, state = started()
    last = turned(engine, state, 60)[-1].bank
    assert last.imagined is not None
    made = last.pose[0, (last.imagined & last.filled)[0]]
    between = apart(made[:, None], made[None]) + 10 * torch.eye(len(made))
    assert float(between.min()) >= 1
    engine.use_memory = False
    blank = turned(engine, state, 20)[-1]
    assert not bool(blank.bank.imagined.any()) and not bool(blank.vision.left.any())  # type: ignore[union-attr]
    assert not bool(started()[1].vision.left.any())  # type: ignore[union-attr]  # not from real frames either


def test_each_of_many_dreams_makes_up_its_own() -> None:
    engine, many = started(batch=2)
    one, alone = started(frames_of=1)
    for _ in range(30):
        many, alone = engine.tick(many, torch.tensor([0, LEFT])), one.tick(alone, torch.tensor([LEFT]))
        assert many.vision is not None and alone.vision is not None
        assert int(many.vision.left[1]) == int(alone.vision.left[0])
        torch.testing.assert_close(many.vision.pose[1], alone.vision.pose[0])
    assert many.bank.imagined is not None and alone.bank.imagined is not None
    assert torch.equal(many.bank.imagined[1], alone.bank.imagined[0])


@pytest.mark.parametrize("left", [TICKS - 1, PAINTED, 1])  # drawn, not painted, half painted
def test_a_saved_dream_goes_on_with_what_it_was_making_up(left: int, tmp_path: Path) -> None:
    world = load_world(tiny_world(tmp_path / "w", config=IMAGINING))
    world.reset(seed=1)
    while True:
        world.step(LEFT)
        vision = world.snapshot().dream.vision
        if vision is not None and int(vision.left[0]) == left:
            break
    packed = world.pack_state(world.snapshot())
    ahead = [world.step(LEFT).image for _ in range(2 * TICKS)]
    other = load_world(tmp_path / "w")
    other.restore(other.unpack_state(packed))
    for image in ahead:
        np.testing.assert_array_equal(other.step(LEFT).image, image)
    assert other.snapshot().hash() == world.snapshot().hash()
    for one, two in zip(world.memory.keyframes, other.memory.keyframes, strict=True):
        np.testing.assert_array_equal(one.thumbnail, two.thumbnail)


def test_no_tick_has_all_the_work_of_painting(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, state = started()
    painter = engine.model.tokenizer.decoder
    done: list[tuple[str, int]] = []
    for part in ("start", "finish"):
        own = getattr(painter, part)

        def told(x: torch.Tensor, part: str = part, own: Callable[..., torch.Tensor] = own) -> torch.Tensor:
            done.append((part, state.tick))
            return own(x)

        monkeypatch.setattr(painter, part, told)
    for _ in range(40):
        state = engine.tick(state, torch.tensor([LEFT]))
    assert len(done) > 2
    started_at, finished_at = ([t for p, t in done if p == part] for part in ("start", "finish"))
    assert [t + 1 for t in started_at][: len(finished_at)] == finished_at


def test_nothing_made_up_stands_before_what_was_seen() -> None:
    pose = [0.0, 0.0, 0.0]
    views = keyframes([pose, pose])
    wall = views.wall.clone()
    wall[:, 1] = 0.1  # right before the player's nose, where the other shows a room
    at = torch.tensor(pose)[None, None]
    for imagined in ([0.0, 1.0], [0.0, 0.0]):
        told = views._replace(wall=wall, imagined=torch.tensor([imagined]))
        coarse = look(told, LENS, at, 10, 16, ASPECT)
        fine = finer(told, LENS, at, coarse, 4, ASPECT)
        hidden = not imagined[1]
        assert hidden or bool((coarse.which == 0).all())
        for found in (coarse, fine):
            rows, columns = found.depth.shape[2:]
            assert bool(found.depth[0, 0, rows // 2, columns // 2] > 0.2) != hidden


@pytest.mark.parametrize(("imagined", "doubt"), [((1.0, 1.0, 1.0, 0.0), -0.97), ((0.0, 0.0, 0.0, 1.0), 2.99)])
def test_what_was_seen_is_believed_about_walls(imagined: tuple[float, ...], doubt: float) -> None:
    pose = [0.0, 0.0, 0.0]
    views = keyframes([pose] * 4)
    wall = views.wall.clone()
    wall[:, 3] = 0.1  # three see past it
    told = views._replace(wall=wall, imagined=torch.tensor([imagined]))
    assert float(doubted(torch.tensor([[[0.1, 0.0]]]), told, LENS)) == pytest.approx(doubt, abs=1e-3)


def test_what_was_made_up_leaves_before_what_was_seen() -> None:
    bank = KeyframeBank.empty(1, 5, (2, 2, 4), "cpu", (8, 16))
    every, image = torch.ones(1, dtype=torch.bool), torch.zeros(1, 3, 8, 16, dtype=torch.uint8)
    came = ((0.0, False), (0.1, False), (1.0, True), (1.13, True), (5.0, False), (9.0, False))
    for tick, (at, imagined) in enumerate(came):
        pose, z = torch.tensor([[at, 0.0, 0.0]]), torch.zeros(1, 2, 2, 4)
        bank = bank.keep(every, z, pose, tick, torch.ones(1, 16), image, imagined)
    assert {0.0, 0.1, 5.0, 9.0} < {round(x, 2) for x in bank.pose[0, :, 0].tolist()}


def test_the_stage_learns_what_there_may_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imagine_stage, "LATER", (4, 12))
    monkeypatch.setattr(imagine_stage, "FRESH", 4)
    monkeypatch.setattr(imagine_stage, "KEPT", 16)
    torch.manual_seed(0)
    world = tiny_model(config=IMAGINING)
    data = dataset(tmp_path, world)
    stage = ImagineStage(world, data, data, "cpu")
    others = {k: v.clone() for k, v in world.state_dict().items() if not k.startswith("imagination.")}
    optimizer = torch.optim.Adam(stage.model.parameters(), 3e-3)
    misses = []
    for step in range(60):
        loss, metrics = stage.loss(stage.batch(np.random.default_rng(step % 4), 0.0), 0.0)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        misses.append(metrics["miss"])
    assert np.mean(misses[-10:]) < 0.7 * np.mean(misses[:5])
    assert all(torch.equal(v, world.state_dict()[k]) for k, v in others.items())
    assert len(stage._told) == 16
    assert stage.preview(tmp_path / "seen.png").keys() == {"known", "spread", "std"}
    assert (tmp_path / "seen.png").exists()


def test_two_parts_of_such_a_world_are_kept_in_bytes(tmp_path: Path) -> None:
    world = tiny_model(config=IMAGINING)
    kept = stored_tensors(world)
    assert kept.keys() == expected_tensors(IMAGINING).keys()
    whole = [k for k, v in kept.items() if v.dtype == torch.int8]
    assert whole and all(k.startswith(IN_BYTES) for k in whole)
    again = build_model(IMAGINING, kept).state_dict()
    for name, tensor in world.state_dict().items():
        most = tensor.flatten(1).abs().amax(1) / 250 if name in whole else tensor.abs().max() / 200
        off = (again[name] - tensor).abs()
        assert bool((off.flatten(1).amax(1) <= most).all() if name in whole else (off <= most).all())
        assert (name + SCALE in kept) == (name in whole)
    assert not any(v.dtype == torch.int8 for v in stored_tensors(tiny_model(config=RECALLING)).values())
    torch.nn.init.constant_(world.tokenizer.encoder.layers[1].weight, float("nan"))
    with pytest.raises(WorldError, match="NaN"):
        save_weights(tmp_path / "weights.safetensors", stored_tensors(world))
    with pytest.raises(WorldError, match="multiple of 3"):
        replace(IMAGINING.dynamics, imagination=16)
