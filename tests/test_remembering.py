"""Dreams of a world that recalls: what its bank holds, and the past that a dream begins with."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from one_room import ASPECT, LENS, keyframes
from tiny import ACTIONS, HEIGHT, LATENT_GRID, RECALLING, WIDTH, tiny_frames, tiny_model, tiny_world
from world_model import keeper as keeping
from world_model import recollection as recollecting
from world_model.batch_dream import BatchDream
from world_model.data.episodes import Episode
from world_model.data.remembered import Held, Remembered
from world_model.dream import THOUGHT, DreamEngine
from world_model.evaluation.worlds import AblatedDream
from world_model.memory import APART, KeyframeBank, apart
from world_model.place import HISTORY
from world_model.precision import native_dtype
from world_model.recall import Views, look, shrunk, walls_near
from world_model.scenes import Past, Scene, load_scene, save_scene
from world_model.state import DreamState
from world_model.training.dynamics_stage import own_views
from world_model.training.publish import SCENE_TICKS, make_scene
from world_model.types import WorldError
from world_model.world import load_world


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
    # A past does not keep how sure a pose is, which only an aligner asks for; no world that recalls has one.
    world = tiny_model(config=replace(RECALLING, dynamics=replace(RECALLING.dynamics, align=False)))
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
    engine = DreamEngine(world, native_dtype("cpu"))  # as the past was walked

    def begun(scene: Scene) -> DreamState:
        z, phase = engine.encode(scene.frames)[None], np.array([scene.phase])
        return engine.start(z, scene.actions[None], phase, obs=scene.frames[None], past=scene.past)

    whole, short = begun(Scene("all", frames, actions, 0)), begun(found)
    assert whole.tick == short.tick == 49 and torch.equal(whole.phase, short.phase)
    assert torch.equal(whole.place.pose, short.place.pose)
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


def test_walls_out_of_reach_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which walls are in the player's way is asked of those near by alone."""
    engine = DreamEngine(tiny_model(config=RECALLING))
    obs = tiny_frames(30)
    act, phase = np.full((1, 29), 1, np.int64), np.zeros(1, np.int64)
    state = engine.start(engine.encode(obs)[None], act, phase, obs=obs[None])
    keeper, recollection = engine._keeper, engine.model.dynamics.recollection
    assert keeper is not None and recollection is not None and int(state.bank.filled.sum()) > 1
    felt = recollection.felt(keeper.blank(state.bank), state.place, recollection.walls(state.z))
    felt = felt._replace(wall=torch.full_like(felt.wall, 0.022))
    numbers = felt, recollection.lens, state.place.pose[:, :2]
    assert walls_near(*numbers, torch.full((1, 1), 9.0)).shown.any()
    assert not walls_near(*numbers, torch.zeros(1, 1)).shown.any()
    now = state.place, torch.tensor([1]), torch.tensor([0]), felt
    moved = recollection.move(*now)
    everywhere = partial(walls_near, reach_B1=torch.full((1, 1), 9.0))
    monkeypatch.setattr(recollecting, "walls_near", lambda views, lens, xy, _: everywhere(views, lens, xy))
    torch.testing.assert_close(recollection.move(*now).pose, moved.pose)


def test_a_dream_feels_walls_by_what_it_remembers_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A real frame's latent tells them by itself; that of a dream does not, whether it is painted or not."""
    engine = DreamEngine(tiny_model(config=RECALLING))
    recollection, asked = engine.model.dynamics.recollection, list[bool]()
    assert recollection is not None
    walls = recollection.walls

    def told(z: torch.Tensor, glimpsed: torch.Tensor | None = None) -> torch.Tensor:
        asked.append(glimpsed is not None)
        return walls(z, glimpsed)

    monkeypatch.setattr(recollection, "walls", told)
    obs, act = tiny_frames(6), np.full((1, 5), 1, np.int64)
    state = engine.start(engine.encode(obs)[None], act, np.zeros(1, np.int64), obs=obs[None])
    assert asked and not any(asked)
    asked.clear()
    engine.tick(engine.tick(state, torch.tensor([1])), torch.tensor([1]))
    assert asked == [True, True]


def test_a_tick_looks_once_whatever_asks_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = load_world(tiny_world(tmp_path / "w", config=RECALLING))
    world.reset(seed=0)
    for _ in range(3):
        world.step(1)
    looks = []
    monkeypatch.setattr(recollecting, "look", lambda *how: looks.append(how) or look(*how))
    for _ in range(4):
        world.step(1)
    assert len(looks) == 4  # for what is felt, for the trunk and for the picture


def test_ablations_change_what_is_dreamed() -> None:
    engine = DreamEngine(tiny_model(config=RECALLING))
    obs = np.stack([tiny_frames(6, seed=i) for i in range(2)])
    pictures = {}
    for part in (None, "no-keyframes", "shuffled-keyframes"):
        dream = BatchDream(engine) if part is None else AblatedDream(engine, part)
        dream.reset(obs, np.full((2, 5), 2, np.int64), np.zeros(2, np.int64))
        pictures[part] = [dream.step(np.array([3, 3])) for _ in range(3)][-1]
    assert not np.array_equal(pictures[None], pictures["no-keyframes"])


Walk = tuple[list[Episode], list[NDArray[np.float32]], list[NDArray[np.float16]]]


def walked(pose: NDArray[np.float32], depth: int) -> Walk:
    """An episode along these poses (T + 1, 3), the wall always as far off; its poses and its latents."""
    ticks = len(pose) - 1
    episode = Episode(
        {"source": "mazes", "licence": "test", "actions": [a.name for a in ACTIONS], "phases": 5},
        frames=tiny_frames(ticks + 1),
        actions=np.zeros(ticks, np.int16),
        phases=np.zeros(ticks, np.uint8),
        pose=pose,
        sound=None,
        rewards=np.zeros(ticks, np.float32),
        depth=np.full((ticks + 1, HEIGHT // 4, WIDTH // 4), depth, np.float16),
    )
    latents = np.zeros((ticks + 1, 4, LATENT_GRID[0], LATENT_GRID[1]), np.float16)
    return [episode], [pose], [latents]


def test_what_an_episode_would_hold_comes_in_time() -> None:
    pose = np.zeros((41, 3), np.float32)
    pose[:, 2] = np.linspace(0, 4, 41)
    memory = Remembered(*walked(pose, 100), 100.0, size=6)
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


def test_nothing_near_by_is_held_where_that_is_asked() -> None:
    pose = np.zeros((41, 3), np.float32)
    pose[:, 0] = np.linspace(0, 1, 41)
    memory = Remembered(*walked(pose, 200), 100.0, size=12)
    places = [(0, 30), (0, 30), (0, 30)]
    held = memory.held(places, 4, LENS, ASPECT, count=4, later=0, beyond=[0.0, 0.4, 9.0]).views
    end = float(pose[34, 0])
    nearest = [end - float(held.pose[b, held.held[b, 0], 0].max()) for b in range(3)]
    assert nearest[0] < 0.2 and 0.4 <= nearest[1] < 0.6
    assert nearest[2] > 0.7 and int(held.held[2, 0].sum()) == 1  # a bank is never empty


def test_config_tells_worlds_that_recall() -> None:
    assert replace(RECALLING, name="x").dynamics.recall and not RECALLING.dynamics.pose


def test_in_training_some_of_what_is_held_is_forgotten() -> None:
    """All of it in few clips, a part of it in half of them; nothing where that is asked."""
    dynamics = tiny_model(config=RECALLING).dynamics
    batch, count = 200, 6
    views = Views(
        torch.zeros(batch, count, 3, HEIGHT, WIDTH, dtype=torch.uint8),
        torch.zeros(batch, count, 3),
        torch.ones(batch, count, 4 * LATENT_GRID[1]),
        torch.ones(batch, 1, count, dtype=torch.bool),
    )
    held = Held(views, torch.zeros(batch, count, 4, *LATENT_GRID))
    torch.manual_seed(0)
    kept = []
    for forgotten in (0.0, 0.1, 1.0):
        own = own_views(dynamics, held, forgotten)
        assert own is not None
        kept.append(own.held[:, 0].float().mean(1))
    whole, some, none = kept
    assert whole.min() == 1 and none.max() == 0
    assert 0.3 < float((some == 1).float().mean()) < 0.65
    assert 0.05 < float((some == 0).float().mean()) < 0.3
    assert float(((some > 0) & (some < 1)).float().mean()) > 0.2
