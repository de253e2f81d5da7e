"""Memory as places: keyframes of a synthetic room, looked at from elsewhere."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tiny import ACTIONS, HEIGHT, LATENT_GRID, RECALLING, WIDTH, tiny_frames, tiny_model, tiny_world
from world_model import keeper as keeping
from world_model.batch_dream import BatchDream
from world_model.data.episodes import Episode
from world_model.data.remembered import Remembered
from world_model.dream import THOUGHT, DreamEngine, DreamState
from world_model.evaluation.worlds import AblatedDream
from world_model.map import DETAIL_CHANNELS, FINE_DETAIL, Detail, Gaze
from world_model.memory import APART, KeyframeBank, apart
from world_model.place import HISTORY, Place, PlaceModel
from world_model.recall import (
    Lens,
    Views,
    centres,
    colours,
    finer,
    known_part,
    look,
    onto_plan,
    retrieve,
    shrunk,
    take,
    turned_back,
    wall_depths,
)
from world_model.recollection import BODY, Recollection, hand_on, nothing_held, show_what_was_handed
from world_model.scenes import Past, Scene, load_scene, save_scene
from world_model.settle import Alignment, fuse
from world_model.training.publish import SCENE_TICKS, make_scene
from world_model.training.stride_stage import Steps, walk_loss
from world_model.training.survey_stage import SurveyBatch, odometer_loss, varied
from world_model.types import WorldError
from world_model.world import load_world

LENS = Lens(torch.tensor(1.2), (-0.1, 0.2))
ASPECT = 0.625
ROOM = 1.0
"""Half the side of a square room around the origin."""


def room_depth(pose: torch.Tensor, columns: int) -> torch.Tensor:
    """Depth (columns,) of the walls of the room, perpendicular to the picture."""
    across = centres(columns, pose.device) * LENS.spread
    way = onto_plan(torch.ones(columns), across, torch.tensor([0.0, 0.0, float(pose[2])]))
    reach = (ROOM * way.sign() - pose[:2]) / torch.where(way.abs() < 1e-6, 1e-6, way)
    return reach.amin(-1)


def room_picture(pose: torch.Tensor, rows: int = 160, columns: int = 256) -> torch.Tensor:
    """uint8 (3, rows, columns): every surface is painted with a smooth pattern of where it is."""
    depth = room_depth(pose, columns)
    down = centres(rows, pose.device)[:, None] * ASPECT * LENS.spread
    level = torch.where(down > 0, 0.1, 0.2) / down.abs()
    met = torch.minimum(depth[None], level)
    xy = onto_plan(met, met * centres(columns, pose.device) * LENS.spread, pose)
    paint = torch.stack((xy[..., 0], xy[..., 1], -down * met * 5))
    return ((paint * 5).sin() * 100 + 128).round().to(torch.uint8)


def keyframes(poses: list[list[float]], columns: int = 64) -> Views:
    pose = torch.tensor(poses)
    return Views(
        torch.stack([room_picture(p) for p in pose])[None],
        pose[None],
        torch.stack([room_depth(p, columns) for p in pose])[None],
        torch.ones(1, 1, len(poses), dtype=torch.bool),
    )


def remembered(views: Views, pose: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """What is remembered from a pose, uint8 (160, 256, 3), and where anything is (160, 256)."""
    at = torch.tensor(pose)[None, None]
    coarse = look(views, LENS, at, 40, 64, ASPECT)
    found = finer(views, LENS, at, coarse, 4, ASPECT)
    picture = (colours(views.image, found)[0, 0].permute(1, 2, 0) + 1) * 127.5
    return picture.round().clamp(0, 255).to(torch.uint8).numpy(), found.known[0, 0].numpy()


def error(shown: np.ndarray, pose: list[float], where: np.ndarray) -> float:
    real = room_picture(torch.tensor(pose)).permute(1, 2, 0).numpy()
    return float(np.abs(shown.astype(float) - real)[where].mean())


def test_a_keyframe_shows_what_it_is_a_picture_of() -> None:
    pose = [0.2, -0.1, 0.4]
    shown, known = remembered(keyframes([pose]), pose)
    assert known.mean() > 0.98
    assert error(shown, pose, known) < 1.0


def test_it_is_seen_from_elsewhere_as_it_looks_from_there() -> None:
    views = keyframes([[0.0, 0.0, 0.0], [0.0, 0.0, 1.2], [0.0, 0.0, -1.2]])
    for pose in ([0.3, 0.1, 0.2], [-0.2, -0.3, -0.4], [0.4, 0.0, 0.9]):
        shown, known = remembered(views, pose)
        assert known.mean() > 0.75, pose
        assert error(shown, pose, known) < 6, pose
    # The same keyframes believed to be taken from elsewhere show something else.
    wrong = views._replace(pose=views.pose + torch.tensor([0.2, 0.0, 0.3]))
    shown, known = remembered(wrong, [0.3, 0.1, 0.2])
    assert error(shown, [0.3, 0.1, 0.2], known) > 15


def test_what_is_behind_is_not_known() -> None:
    views = keyframes([[0.0, 0.0, 0.0]])
    assert remembered(views, [0.0, 0.0, np.pi])[1].mean() < 0.02
    assert remembered(views, [0.0, 0.0, 0.2])[1].mean() > 0.7


def test_a_nearer_wall_hides_what_is_behind_it() -> None:
    pose = [0.0, 0.0, 0.0]
    near = keyframes([pose])
    near = near._replace(wall=torch.full_like(near.wall, 0.3))
    both = Views(
        *(torch.cat((a, b), 1) for a, b in zip(near[:3], keyframes([pose])[:3], strict=True)),
        torch.ones(1, 1, 2, dtype=torch.bool),
    )
    found = look(both, LENS, torch.tensor(pose)[None, None], 40, 64, ASPECT)
    assert float(found.depth[0, 0, 20].max()) < 0.32


def test_wall_depths_agree_with_geometry() -> None:
    views = keyframes([[0.0, 0.0, 0.3]])
    pose = torch.tensor([0.2, 0.1, 0.5])
    found = wall_depths(views, LENS, pose[None, None], 32)[0, 0, 0]
    truth = room_depth(pose, 32)
    met = found < 19
    assert met.float().mean() > 0.6
    assert float(((found - truth).abs() / truth)[met].median()) < 0.01


def test_retrieval_takes_what_shows_the_view_and_nothing_that_is_not_held() -> None:
    poses = [[0.0, 0.0, a] for a in np.linspace(0, 2 * np.pi, 9)[:-1].tolist()]
    views = keyframes(poses)
    pose = torch.tensor([[0.1, 0.0, poses[2][2] + 0.1]])
    assert int(retrieve(views, LENS, pose, 3, ASPECT)[0, 0]) == 2
    held = views.held.clone()
    held[..., 2] = False
    assert 2 not in retrieve(views._replace(held=held), LENS, pose, 5, ASPECT)[0]
    assert torch.equal(take(views, torch.tensor([[3, 1]])).pose, views.pose[:, [3, 1]])


def test_held_may_differ_from_tick_to_tick() -> None:
    views = keyframes([[0.0, 0.0, 0.0]])._replace(held=torch.tensor([[[False], [True]]]))
    found = look(views, LENS, torch.zeros(1, 2, 3), 10, 16, ASPECT)
    assert not found.known[0, 0].any() and found.known[0, 1].float().mean() > 0.9


def test_a_gaze_hands_the_colours_on_from_the_start() -> None:
    gaze, out = Gaze(10, 16), nn.Conv2d(32, 12, 3, padding=1)
    hand_on(gaze, 12)
    show_what_was_handed(out)
    fine = torch.randn(2, 16, 8, 8)
    detail = gaze(torch.randn(2, 10, 4, 4), fine)
    shown = out(nn.functional.silu(detail.fine))
    assert torch.allclose(shown, fine[:, :12], atol=1e-4)


def test_where_nothing_is_known_the_latent_paints() -> None:
    decoder = tiny_model(config=RECALLING).tokenizer.decoder
    assert decoder.detail is not None
    nn.init.zeros_(decoder.detail.enter.weight)
    nn.init.zeros_(decoder.detail.enter.bias)  # type: ignore[arg-type]
    rows, columns = LATENT_GRID
    z = torch.randn(1, 4, rows, columns)
    coarse = torch.randn(1, DETAIL_CHANNELS, 4 * rows, 4 * columns)
    fine = torch.randn(1, FINE_DETAIL, 8 * rows, 8 * columns)
    known = torch.zeros(1, 1, 4 * rows, 4 * columns)
    known[..., : 2 * columns] = 1
    with torch.no_grad():
        alone, painted = decoder(z), decoder(z, Detail(coarse, fine))
        mixed = decoder(z, Detail(coarse, fine, known))
    torch.testing.assert_close(mixed[..., WIDTH // 2 :], alone[..., WIDTH // 2 :])
    torch.testing.assert_close(mixed[..., : WIDTH // 2 - 4], painted[..., : WIDTH // 2 - 4])
    assert not torch.allclose(alone, painted)


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
        felt = recollection.felt(nothing, place, torch.zeros(1, 4, *LATENT_GRID))
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


def test_who_walks_into_a_wall_slides_along_it(recollection: Recollection) -> None:
    walks_ahead(recollection)
    views = keyframes([[0.8, 0.0, 0.0]], recollection.columns)
    place = PlaceModel.nowhere(1, "cpu")
    place = place._replace(pose=torch.tensor([[ROOM - 0.03, 0.0, math.pi / 4]]))
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


def test_places_are_reckoned_in_full_precision(recollection: Recollection) -> None:
    world = tiny_model(config=RECALLING).for_inference(torch.bfloat16)
    assert world.dynamics.recollection is not None
    assert {p.dtype for p in world.dynamics.recollection.stride.parameters()} == {torch.float32}
    assert next(world.dynamics.recollection.rangefinder.parameters()).dtype == torch.bfloat16


def test_the_bank_holds_places_and_never_gives_up_the_first() -> None:
    bank = KeyframeBank.empty(1, 4, (2, 2, 4), "cpu", (HEIGHT, WIDTH))
    walls = torch.ones(1, 16)
    for tick in range(12):
        pose = torch.tensor([[0.36 * APART[0] * tick, 0.0, 0.0]])
        image = torch.full((1, 3, HEIGHT, WIDTH), tick, dtype=torch.uint8)
        z = torch.randn(1, 2, 2, 4)
        wanted = bank.wants(pose)
        if bool(wanted.any()):
            bank = bank.keep(wanted, z, pose, tick, walls, image)
    assert bank.images is not None
    born = bank.born[0].tolist()
    assert born[0] == 0 and all(b % 3 == 0 for b in born)
    for slot, tick in enumerate(born):
        assert bool((bank.images[slot] == tick).all())
        assert float(bank.pose[0, slot, 0]) == pytest.approx(0.36 * APART[0] * tick)
    assert float(apart(torch.zeros(3), torch.tensor([0.0, 0.0, 2 * np.pi]))) < 1e-4


def test_of_two_that_are_alike_the_younger_leaves_but_not_the_last() -> None:
    bank = KeyframeBank.empty(1, 4, (2, 2, 4), "cpu", (HEIGHT, WIDTH))
    image = torch.zeros(1, 3, HEIGHT, WIDTH, dtype=torch.uint8)
    held = []
    for tick, at in enumerate((0.0, 10.0, 11.2, 20.0, 30.0, 30.5)):
        pose = torch.tensor([[at * APART[0], 0.0, 0.0]])
        bank = bank.keep(
            torch.ones(1, dtype=torch.bool), torch.zeros(1, 2, 2, 4), pose, tick, torch.ones(1, 16), image
        )
        held.append(sorted(round(x / APART[0], 1) for x in bank.pose[0, bank.filled[0], 0].tolist()))
    assert held[4] == [0.0, 10.0, 20.0, 30.0]
    assert 30.5 in held[5]


def test_what_was_seen_lately_is_looked_at_first() -> None:
    pose = [0.0, 0.0, 0.0]
    views = keyframes([pose, pose])
    at = torch.tensor(pose)[None, None]
    for age in ([0.0, 200.0], [200.0, 0.0]):
        found = look(views._replace(age=torch.tensor([age])), LENS, at, 10, 16, ASPECT)
        assert bool((found.which == int(age[0] > age[1])).all())


def test_what_was_seen_is_looked_at_before_what_was_imagined() -> None:
    pose = [0.0, 0.0, 0.0]
    views = keyframes([pose, pose])._replace(age=torch.tensor([[0.0, 400.0]]))
    at = torch.tensor(pose)[None, None]
    assert bool((look(views, LENS, at, 10, 16, ASPECT).which == 0).all())
    dreamed = views._replace(imagined=torch.tensor([[True, False]]))
    assert bool((look(dreamed, LENS, at, 10, 16, ASPECT).which == 1).all())


def test_what_is_known_is_not_held_again_as_it_was_imagined(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = DreamEngine(tiny_model(config=RECALLING))
    obs = tiny_frames(8)
    act, phase = np.full((1, 7), 1, np.int64), np.zeros(1, np.int64)
    state = engine.start(engine.encode(obs)[None], act, phase, obs=obs[None])
    keeper, bank = engine._keeper, state.bank
    assert keeper is not None and bank.imagined is not None and not bool(bank.imagined.any())
    monkeypatch.setattr(KeyframeBank, "wants", lambda _, pose: torch.ones(len(pose), dtype=torch.bool))
    what = (state.z, state.place.pose, state.tick + 1, lambda: obs[None, -1])
    monkeypatch.setattr(keeping, "known_part", lambda *_: torch.ones(1))
    assert keeper.offer(bank, *what, imagined=True) is bank
    real = keeper.offer(bank, *what)
    monkeypatch.setattr(keeping, "known_part", lambda *_: torch.zeros(1))
    own = keeper.offer(bank, *what, imagined=True)
    for after, imagined in ((real, False), (own, True)):
        assert after.imagined is not None
        newest = after.born == state.tick + 1
        assert after.imagined[newest].tolist() == [imagined]


def test_known_is_what_some_keyframe_shows() -> None:
    views = keyframes([[0.0, 0.0, 0.0]])
    ahead, back = torch.zeros(1, 3), torch.tensor([[0.0, 0.0, np.pi]])
    assert float(known_part(views, LENS, ahead, ASPECT)) == 1.0
    assert float(known_part(views, LENS, back, ASPECT)) == 0.0


def test_a_world_that_recalls_plays_saves_and_goes_on(tmp_path: Path) -> None:
    world = load_world(tiny_world(tmp_path / "w", config=RECALLING))
    world.reset(seed=0)
    for action in (1, 2, 2, 1):
        world.step(action)
    moment = world.snapshot()
    packed = world.pack_state(moment)
    ahead = [world.step(a, paint=a != 3).painted().image for a in (1, 3, 2, 2)]
    after = world.snapshot().hash()
    world.restore(world.unpack_state(packed))
    assert world.snapshot().hash() == moment.hash()
    again = [world.step(a).image for a in (1, 3, 2, 2)]
    assert all(np.array_equal(a, b) for a, b in zip(ahead, again, strict=True))
    assert world.snapshot().hash() == after
    assert world.memory.keyframes


def test_real_frames_of_the_context_are_held_as_they_are() -> None:
    engine = DreamEngine(tiny_model(config=RECALLING))
    obs = np.stack([tiny_frames(4, seed=i) for i in range(2)])
    dream = BatchDream(engine)
    dream.reset(obs, np.ones((2, 3), np.int64), np.zeros(2, np.int64))
    assert dream._state is not None
    bank = dream._state.bank
    assert bank.images is not None
    for b in range(2):
        for slot in bank.filled[b].nonzero()[:, 0].tolist():
            real = obs[b, int(bank.born[b, slot])]
            assert np.array_equal(bank.images[slot][b].permute(1, 2, 0).numpy(), real)
    assert dream.step(np.array([1, 2])).shape == (2, HEIGHT, WIDTH, 3)
    assert dream.context_predictions(obs, np.ones((2, 3), np.int64), np.zeros(2, np.int64)).shape[1] == 3


def test_a_held_picture_is_made_small_once_and_painted_no_second_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = load_world(tiny_world(tmp_path / "world", config=RECALLING))
    world.reset(seed=0)
    made, painted = [], []
    small, decode = keeping.shrunk, DreamEngine.decode
    monkeypatch.setattr(keeping, "shrunk", lambda *args: made.append(1) or small(*args))
    monkeypatch.setattr(DreamEngine, "decode", lambda *args: painted.append(1) or decode(*args))
    monkeypatch.setattr(KeyframeBank, "wants", lambda _, pose: torch.ones(len(pose), dtype=torch.bool))
    monkeypatch.setattr(keeping, "known_part", lambda *_: torch.zeros(1))
    held = len(world.memory.keyframes)
    ticks = 12
    for tick in range(ticks):
        world.step(1 + tick % 3)
    assert len(world.memory.keyframes) > held  # some of these ticks were taken in
    assert len(painted) == ticks and len(made) <= held + ticks
    state = world.snapshot().dream
    keeper = world._engine._keeper
    assert keeper is not None
    for image in state.bank.images or ():
        assert torch.equal(keeper.small(image), shrunk(image[:, None], 4)[:, 0])


def test_of_a_long_context_all_is_remembered_and_its_end_is_thought_about() -> None:
    engine = DreamEngine(tiny_model(config=RECALLING))
    ticks = THOUGHT + 12
    obs = tiny_frames(ticks + 1)
    act, phase = np.full((1, ticks), 2, np.int64), np.zeros(1, np.int64)
    thought: list[int] = []
    step = engine.model.dynamics.trunk.step
    engine.model.dynamics.trunk.step = lambda *args: thought.append(1) or step(*args)  # type: ignore[method-assign]
    state = engine.start(engine.encode(obs)[None], act, phase, obs=obs[None])
    assert len(thought) == THOUGHT and state.tick == ticks and state.trunk.filled == 4
    # What the player did before the first frames is not known, so neither is where they were taken.
    assert int(state.bank.born[state.bank.filled].min()) >= HISTORY
    short = engine.start(engine.encode(obs[:4])[None], act[:, :3], phase, obs=obs[None, :4])
    assert int(short.bank.born[short.bank.filled].min()) == 0


def test_a_past_is_as_good_as_having_been_there(tmp_path: Path) -> None:
    world = tiny_model(config=RECALLING)
    frames = tiny_frames(50)
    actions, phases = np.arange(49) % 4, np.arange(49) % 5
    taken = actions.astype(np.int16), phases.astype(np.uint8), None, None, np.zeros(49, np.float32)
    episode = Episode({}, frames, *taken)
    scene = make_scene(world, episode, 0, 50, "scene1")
    assert scene.past is not None and len(scene.frames) == SCENE_TICKS + 1 and scene.past.ticks == 17
    save_scene(tmp_path, scene)
    found = load_scene(tmp_path, "scene1", (HEIGHT, WIDTH), 4, RECALLING.dynamics.keyframes)
    assert found.past is not None
    for name, value in vars(scene.past).items():
        assert np.array_equal(getattr(found.past, name), value), name
    for tick in (*found.past.born.tolist(), 17, 49):
        assert np.array_equal(found.frame(int(tick)), frames[tick])
    engine = DreamEngine(world)

    def begun(scene: Scene) -> DreamState:
        z, phase = engine.encode(scene.frames)[None], np.array([scene.phase])
        return engine.start(z, scene.actions[None], phase, obs=scene.frames[None], past=scene.past)

    whole, short = begun(Scene("all", frames, actions, 0)), begun(found)
    assert whole.tick == short.tick == 49 and torch.equal(whole.phase, short.phase)
    torch.testing.assert_close(whole.place.pose, short.place.pose, atol=1e-4, rtol=0)
    # The walk's last frame is held as well: it was the last that was seen for sure.
    assert set(whole.bank.born[0].tolist()) <= {*short.bank.born[0].tolist(), 16, 17}


def test_a_past_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    past = Past(
        4,
        tiny_frames(2),
        np.zeros((2, 3), np.float32),
        np.array([0, 3]),
        *np.zeros((2, 3), np.float32),
        np.full(HISTORY, -1, np.int64),
    )
    scene = Scene("scene1", tiny_frames(3), np.zeros(2, np.int64), 0, past)
    save_scene(tmp_path, scene)
    assert load_scene(tmp_path, "scene1", (HEIGHT, WIDTH), 4, 6).past is not None
    with pytest.raises(WorldError, match="past"):
        load_scene(tmp_path, "scene1", (HEIGHT, WIDTH), 4)
    for change in (
        {"born": np.array([0, 4])},
        {"born": np.array([3, 3])},
        {"history": np.full(HISTORY, 4, np.int64)},
        {"frames": tiny_frames(3)},
    ):
        save_scene(tmp_path, replace(scene, past=replace(past, **change)))
        with pytest.raises(WorldError):
            load_scene(tmp_path, "scene1", (HEIGHT, WIDTH), 4, 6)


def test_walls_are_doubted_once_a_bank(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = DreamEngine(tiny_model(config=RECALLING))
    obs = tiny_frames(30)
    act, phase = np.full((1, 29), 1, np.int64), np.zeros(1, np.int64)
    state = engine.start(engine.encode(obs)[None], act, phase, obs=obs[None])
    keeper, recollection = engine._keeper, engine.model.dynamics.recollection
    assert keeper is not None and recollection is not None and int(state.bank.filled.sum()) > 1
    views = keeper.blank(state.bank)
    fresh = recollection.felt(views._replace(doubt=None), state.place, state.z)
    felt = recollection.felt(views, state.place, state.z)
    assert felt.doubt is not None and fresh.doubt is not None and torch.equal(felt.doubt, fresh.doubt)
    monkeypatch.setattr(keeping, "doubted", None)
    keeper.blank(state.bank)


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


def test_ablations_change_what_is_dreamed() -> None:
    engine = DreamEngine(tiny_model(config=RECALLING))
    obs = np.stack([tiny_frames(6, seed=i) for i in range(2)])
    pictures = {}
    for part in (None, "no-keyframes", "shuffled-keyframes"):
        dream = BatchDream(engine) if part is None else AblatedDream(engine, part)
        dream.reset(obs, np.full((2, 5), 2, np.int64), np.zeros(2, np.int64))
        pictures[part] = [dream.step(np.array([3, 3])) for _ in range(3)][-1]
    assert not np.array_equal(pictures[None], pictures["no-keyframes"])


def test_what_an_episode_would_hold_comes_in_time() -> None:
    ticks, grid = 40, (LATENT_GRID[0], LATENT_GRID[1])
    pose = np.zeros((ticks + 1, 3), np.float32)
    pose[:, 2] = np.linspace(0, 4, ticks + 1)
    episode = Episode(
        {"source": "mazes", "licence": "test", "actions": [a.name for a in ACTIONS], "phases": 5},
        frames=tiny_frames(ticks + 1),
        actions=np.zeros(ticks, np.int16),
        phases=np.zeros(ticks, np.uint8),
        pose=pose,
        sound=None,
        rewards=np.zeros(ticks, np.float32),
        depth=np.full((ticks + 1, HEIGHT // 4, WIDTH // 4), 100, np.float16),
    )
    latents = np.zeros((ticks + 1, 4, *grid), np.float16)
    memory = Remembered([episode], [pose], [latents], 100.0, size=6)
    held = memory.held([(0, 20), (0, 0)], 10, LENS, ASPECT, count=4, later=2).views
    assert held.held.shape == (2, 10, 6) and held.wall.shape[-1] == WIDTH // 4
    assert float(held.wall[0, 0, 0]) == 1.0
    for b, start in enumerate((20, 0)):
        for k in range(6):
            since = held.held[b, :, k].nonzero()[:, 0].tolist()
            if since:  # what is looked at at a tick was taken at it or before
                tick = int(np.abs(pose[:, 2] - float(held.pose[b, k, 2])).argmin())
                assert since[0] == max(0, tick - start) and since == list(range(since[0], 10))
    assert held.held[0, 0].sum() >= 2 and held.held[1, 0].sum() == 1
    assert held.held[:, -1].sum() > held.held[:, 0].sum()


def test_config_tells_worlds_that_recall() -> None:
    assert replace(RECALLING, name="x").dynamics.recall and not RECALLING.dynamics.pose


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
