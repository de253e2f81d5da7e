"""Things that are kept apart from the picture: seen where they are, drawn by their odds, found again."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from other_device import other_device
from tiny import ACTIONS, HEIGHT, LATENT_GRID, TINY, WIDTH, tiny_data, tiny_model, tiny_world
from world_model import load_world
from world_model.behaviour import Odds
from world_model.cast import Cast, Spots
from world_model.config import CastConfig, world_config_from_json
from world_model.data.collect import _pack_things
from world_model.data.dataset import LatentDataset
from world_model.data.episodes import Episode, read_episode, write_episode
from world_model.data.sources import Observation, Thing
from world_model.map import DETAIL_CHANNELS, FINE_DETAIL, Detail
from world_model.place import Place
from world_model.sprites import to_bytes
from world_model.things import Camera, Things, in_sight
from world_model.training.cast_stage import cast_stage
from world_model.training.decoder_stage import DecoderStage
from world_model.training.run import describe_world, foreign_stages
from world_model.types import WorldError
from world_model.weights import load_model
from world_model.world import save_world

CAST = CastConfig(("imp", "clip"), looks_each=2, slots=4, ways=3, gates=2, texels=8, hidden=8)
CASTING = replace(TINY, cast=CAST, tokenizer=replace(TINY.tokenizer, blend=True, glass=True))
SIZE = (HEIGHT, WIDTH)
CAMERA = Camera(torch.tensor(1.0), 0.1, 0.5, HEIGHT / WIDTH)
IMP, CLIP = 1, 2


def open_space(xy: Tensor) -> Tensor:
    return torch.ones(xy.shape[:-1])


def wall_at_half(xy: Tensor) -> Tensor:
    return 0.5 - xy[..., 0]


def a_cast() -> Cast:
    torch.manual_seed(0)
    cast = Cast(CAST, len(ACTIONS), 5)
    cast.sprites.board.copy_(torch.tensor([0.05, 0.0, 0.1]).expand(3, 3))
    cast.sprites.paint.data[:, 3] = 6.0
    for look, red in enumerate((0.0, 1.0, -1.0, 0.2, 0.4)):
        cast.sprites.paint.data[look, :3] = red
    cast.behaviour.ways.copy_(torch.tensor([[0.0, 0, 0], [0.1, 0, 0], [0, 0.1, 0]]))
    cast.behaviour.gates.copy_(torch.tensor([[0.5, 0.5, 0], [-0.5, 0.5, 0]]))
    cast.behaviour.first.copy_(torch.tensor([0.0, 1, 3]))
    cast.behaviour.kind_of.copy_(torch.tensor([0.0, 1, 1, 2, 2]))
    return cast.eval().requires_grad_(False)


def things(*present: tuple[int, int, float, float]) -> Things:
    """Of kind, look, x, y."""
    empty = a_cast().behaviour.empty(1, "cpu")
    parts = [part.clone() for part in empty]
    for n, (kind, look, x, y) in enumerate(present):
        parts[0][0, n], parts[1][0, n] = kind, look
        parts[3][0, n] = torch.tensor([x, y, 0.0])
    return Things(*parts)


def sure(index: int, size: int, *shape: int) -> Tensor:
    """Logits that leave no doubt."""
    return torch.full((*shape, size), -50.0).index_fill(-1, torch.tensor([index]), 50.0)


def odds(look: int = 1, way: int = 0, child: int = 0, birth: int = 0) -> Odds:
    slots, hidden = CAST.slots, torch.ones(1, CAST.slots, CAST.hidden)
    return Odds(
        sure(look, CAST.looks + 2, 1, slots),
        sure(way, CAST.ways, 1, slots),
        sure(child, CAST.kinds + 1, 1, slots),
        sure(birth, CAST.kinds + 1, 1, CAST.gates),
        hidden,
    )


CHANCE = torch.full((1, CAST.slots + CAST.gates, 3), 0.5)
HERE = torch.zeros(1, 3)


def test_a_thing_is_seen_where_it_is_and_as_large_as_it_is() -> None:
    overlay = a_cast().sprites(things((IMP, 1, 0.5, 0.0)), HERE, CAMERA, open_space, SIZE)[0]
    rows, columns = (overlay[3] > 0.5).nonzero(as_tuple=True)
    # 0.1 wide at 0.5 ahead is a tenth of the picture's width; its foot is 0.1 under the eye.
    assert abs(int(columns.max() - columns.min()) + 1 - WIDTH // 10) <= 1
    assert abs((columns.float().mean() + 0.5) - WIDTH / 2) < 1
    assert rows.max() + 1 == pytest.approx(HEIGHT / 2 * (1 + 0.2 / CAMERA.aspect), abs=1.5)
    left = a_cast().sprites(things((IMP, 1, 0.5, 0.2)), HERE, CAMERA, open_space, SIZE)[0]
    assert (left[3] > 0.5).nonzero()[:, 1].float().mean() < WIDTH / 2 - 8


def test_nothing_is_painted_over_what_is_below_the_view() -> None:
    near, camera = things((IMP, 1, 0.1, 0.0)), CAMERA._replace(horizon=0.4)
    overlay = a_cast().sprites(near, HERE, camera, open_space, SIZE)[0, 3]
    rows = overlay.any(1).nonzero().flatten()
    assert int(rows[-1]) + 1 == round((camera.bottom + 1) / 2 * HEIGHT) == round(0.8 * HEIGHT)
    assert a_cast().sprites(near, HERE, CAMERA, open_space, SIZE)[0, 3, -1].any()


def test_paint_is_kept_in_bytes(tmp_path: Path) -> None:
    model = tiny_model(config=CASTING)
    assert model.cast is not None
    paint = model.cast.sprites.paint.data
    paint[:, :3].uniform_(-1, 1)
    paint[:, 3].uniform_(-6, 6)
    save_world(tmp_path / "world", model, "test", {}, {})
    kept = load_model(tmp_path / "world").cast
    assert kept is not None
    torch.testing.assert_close(kept.sprites.paint[:, :3], paint[:, :3], atol=1 / 255 + 1e-6, rtol=0)
    torch.testing.assert_close(kept.sprites.paint[:, 3], paint[:, 3], atol=6 / 255 + 1e-6, rtol=0)
    assert to_bytes(paint * 9).max() == 255 and to_bytes(paint * 9).min() == 0
    paint[1, 0, 0, 0] = math.nan
    with pytest.raises(WorldError, match="NaN"):
        save_world(tmp_path / "damaged", model, "test", {}, {})


def test_the_nearer_thing_hides_the_farther_one_and_walls_hide_both() -> None:
    cast, both = a_cast(), things((IMP, 1, 0.8, 0.0), (IMP, 2, 0.4, 0.0))
    middle = cast.sprites(both, HERE, CAMERA, open_space, SIZE)[0, :, HEIGHT // 2 + 2, WIDTH // 2]
    assert middle[0] < 0.05 and middle[3] > 0.9  # look 2 is black
    behind = things((IMP, 1, 0.8, 0.0))
    assert not cast.sprites(behind, HERE, CAMERA, wall_at_half, SIZE).any()
    assert in_sight(behind, HERE, CAMERA, open_space)[0, 0]
    assert not in_sight(behind, HERE, CAMERA, wall_at_half)[0, 0]
    at_back = torch.tensor([[0.0, 0.0, math.pi]])
    assert not in_sight(behind, at_back, CAMERA, open_space).any()
    assert not cast.sprites(behind, at_back, CAMERA, open_space, SIZE).any()
    assert not cast.sprites(things((CLIP, 0, 0.4, 0.0)), HERE, CAMERA, open_space, SIZE).any()


def test_things_are_before_all_but_what_is_on_the_glass() -> None:
    decoder = tiny_model(config=CASTING).tokenizer.decoder
    assert decoder.detail is not None and decoder.detail.glass is not None
    rows, columns = LATENT_GRID
    z = torch.randn(1, 4, rows, columns)
    coarse = torch.randn(1, DETAIL_CHANNELS, 4 * rows, 4 * columns)
    fine = torch.randn(1, FINE_DETAIL, 8 * rows, 8 * columns)
    overlay = torch.zeros(1, 4, HEIGHT, WIDTH)
    overlay[:, [0, 3], :, : WIDTH // 2] = 1.0  # the left half is red
    red = torch.tensor([1.0, -1.0, -1.0])[:, None, None].expand(3, HEIGHT, WIDTH // 2)
    with torch.no_grad():
        torch.nn.init.zeros_(decoder.detail.glass.weight)
        behind = decoder(z, Detail(coarse, fine))[0]
        for glass, left in ((-30.0, red), (30.0, behind[..., : WIDTH // 2])):
            torch.nn.init.constant_(decoder.detail.glass.bias, glass)  # type: ignore[arg-type]
            picture = decoder(z, Detail(coarse, fine, things=overlay))[0]
            torch.testing.assert_close(picture[..., : WIDTH // 2], left, rtol=0, atol=1e-4)
            torch.testing.assert_close(picture[..., WIDTH // 2 :], behind[..., WIDTH // 2 :])


def test_what_is_drawn_moves_changes_goes_and_comes() -> None:
    behaviour = a_cast().behaviour
    one = things((IMP, 1, 0.5, 0.0))
    after = behaviour.draw(one, odds(look=2, way=1), HERE, CHANCE)
    assert after.look[0, 0] == 2 and after.kind[0, 0] == IMP and after.way[0, 0] == 1
    torch.testing.assert_close(after.at[0, 0], torch.tensor([0.6, 0.0, 0.0]))
    assert after.hidden[0, 0].all() and not after.hidden[0, 1].any()
    turned = behaviour.draw(one, odds(look=3), HERE, CHANCE)
    assert turned.kind[0, 0] == CLIP  # a look belongs to a kind
    hidden = behaviour.draw(one, odds(look=0), HERE, CHANCE)
    assert hidden.kind[0, 0] == IMP and hidden.look[0, 0] == 0
    gone = behaviour.draw(one, odds(look=CAST.looks + 1), HERE, CHANCE)
    assert not gone.kind.any() and not gone.at.any() and not gone.hidden.any()
    born = behaviour.draw(one, odds(birth=CLIP), HERE, CHANCE)
    assert born.kind[0].tolist() == [IMP, CLIP, CLIP, 0] and born.look[0, 1] == 3
    torch.testing.assert_close(born.at[0, 1], behaviour.gates[0])
    full = behaviour.draw(born, odds(child=IMP, birth=IMP), HERE, CHANCE)
    assert (full.kind > 0).all()  # what finds no slot is not there


def test_what_comes_out_of_a_thing_is_on_the_players_side_of_it() -> None:
    behaviour = a_cast().behaviour
    behaviour.offset[CLIP] = torch.tensor([0.1, 0.0, 0.05])
    born = behaviour.draw(things((IMP, 1, 0.5, 0.0)), odds(child=CLIP), HERE, CHANCE)
    torch.testing.assert_close(born.at[0, 1], torch.tensor([0.4, 0.0, 0.05]))


def test_nobody_walks_through_what_is_solid() -> None:
    behaviour = a_cast().behaviour
    behaviour.solid[IMP] = 0.08
    there = things((IMP, 1, 0.2, 0.0), (CLIP, 3, -0.2, 0.0))
    start = torch.tensor([[0.1, 0.0]])
    end = behaviour.beside(there, start, torch.tensor([[0.15, 0.01]]))
    assert float((end - torch.tensor([[0.2, 0.0]])).norm()) == pytest.approx(0.08, abs=1e-4)
    assert float(end[0, 1]) > 0.01  # it slides
    free = torch.tensor([[-0.2, 0.0]])  # a clip is no hindrance
    assert torch.equal(behaviour.beside(there, start, free), free)
    inside = torch.tensor([[0.17, 0.0]])
    assert torch.equal(behaviour.beside(there, inside, inside), inside)  # nobody is thrown out


def spots(cast: Cast, *found: tuple[int, int, float, float]) -> Spots:
    """Of kind, look of its kind, depth ahead and column of 8."""
    rows, columns = HEIGHT // 8, WIDTH // 8
    kind = sure(0, CAST.kinds + 1, 1, rows, columns)
    look = torch.zeros(1, rows, columns, CAST.looks_each)
    depth = torch.zeros(1, rows, columns)
    for k, j, ahead, column in found:
        kind[0, 2, int(column)] = sure(k, CAST.kinds + 1)
        look[0, 2, int(column), j] = 9.0
        depth[0, 2, int(column)] = math.log(ahead)
    return Spots(kind, look, -torch.ones(1, rows, columns), depth, torch.zeros(1, rows, columns))


def test_a_real_picture_puts_right_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    cast = a_cast()
    told = spots(cast, (IMP, 1, 0.4, 4))
    monkeypatch.setattr(cast.spotter, "forward", lambda _: told)
    nothing = torch.zeros(1, 3, HEIGHT, WIDTH)
    new = cast.watch(things(), nothing, HERE, CAMERA, open_space)
    assert new.kind[0].tolist() == [IMP, 0, 0, 0] and new.look[0, 0] == 2
    torch.testing.assert_close(new.at[0, 0], torch.tensor([0.4, 0.0, 0.0]))
    known = cast.watch(things((CLIP, 3, 0.44, 0.0)), nothing, HERE, CAMERA, open_space)
    assert known.kind[0].tolist() == [IMP, 0, 0, 0]  # the same thing, seen for what it is
    assert float(known.at[0, 0, 0]) == pytest.approx(0.42)
    elsewhere = cast.watch(things((IMP, 1, 0.3, 0.2), (IMP, 1, -0.3, 0.0)), nothing, HERE, CAMERA, open_space)
    # What would be seen and is not found is gone; what is behind the player stays.
    assert elsewhere.kind[0].tolist() == [IMP, IMP, 0, 0]
    assert float(elsewhere.at[0, 1, 0]) == pytest.approx(-0.3)
    assert float(elsewhere.at[0, 0, 0]) == pytest.approx(0.4)


def test_what_is_always_there_is_not_forgotten_when_it_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    cast = a_cast()
    cast.spotter.residents[0] = torch.tensor([CLIP, 0.4, 0.0, 0.0])
    began = cast.begin(1, "cpu")
    assert began.kind[0, 0] == CLIP and began.look[0, 0] == 3
    monkeypatch.setattr(cast.spotter, "forward", lambda _: spots(cast))
    after = cast.watch(began, torch.zeros(1, 3, HEIGHT, WIDTH), HERE, CAMERA, open_space)
    assert after.kind[0, 0] == CLIP and after.look[0, 0] == 0


def test_a_world_with_a_cast_plays_saves_and_goes_on(tmp_path: Path) -> None:
    world = load_world(tiny_world(tmp_path / "w", config=CASTING))
    world.reset(seed=0)
    for action in (1, 2, 2, 1):
        world.step(action)
    moment = world.snapshot()
    assert moment.dream.things is not None
    packed = world.pack_state(moment)
    ahead = [world.step(a).image for a in (1, 3, 2, 2)]
    after = world.snapshot().hash()
    world.restore(world.unpack_state(packed))
    assert world.snapshot().hash() == moment.hash()
    again = [world.step(a).image for a in (1, 3, 2, 2)]
    assert all(np.array_equal(a, b) for a, b in zip(ahead, again, strict=True))
    assert world.snapshot().hash() == after


def test_a_state_with_a_kind_that_there_is_not_is_refused(tmp_path: Path) -> None:
    world = load_world(tiny_world(tmp_path / "w", config=CASTING))
    world.reset(seed=0)
    state = world.snapshot()
    assert state.dream.things is not None
    bad = state.dream.things._replace(kind=state.dream.things.kind + CAST.kinds + 1)
    packed = world.pack_state(replace(state, dream=replace(state.dream, things=bad)))
    with pytest.raises(WorldError, match="things"):
        world.unpack_state(packed)


def test_who_stands_still_without_a_key_sees_the_same_picture_behind_the_things(tmp_path: Path) -> None:
    engine = load_world(tiny_world(tmp_path / "w", config=CASTING))._engine
    still, zeros = torch.zeros(1, 6, dtype=torch.long), torch.zeros(1, 3)
    rest = Place(zeros, zeros, zeros, still)
    assert engine._idle(rest).tolist() == [True]
    assert engine._idle(rest._replace(motion=zeros + 0.01)).tolist() == [False]
    assert engine._idle(rest._replace(history=still + torch.eye(6, dtype=torch.long)[:1])).tolist() == [False]
    assert engine._idle(rest._replace(history=still - 1)).tolist() == [False]  # nobody knows


def test_other_seeds_other_things(tmp_path: Path) -> None:
    world = load_world(tiny_world(tmp_path / "w", config=CASTING))
    ends = []
    for seed in (1, 1, 2):
        world.reset(seed=seed, scene="scene1")
        for _ in range(12):
            world.step(1)
        told = world.snapshot().dream.things
        assert told is not None
        ends.append(torch.cat([part.float().flatten() for part in told]))
    assert torch.equal(ends[0], ends[1]) and not torch.equal(ends[0], ends[2])


def test_a_cast_travels_in_the_config() -> None:
    assert world_config_from_json(CASTING.to_json()) == CASTING
    assert "cast" not in TINY.to_json()
    assert foreign_stages(TINY) >= {"sprites", "behaviour", "spotter"}
    assert not foreign_stages(CASTING) & {"sprites", "behaviour", "spotter"}
    with pytest.raises(WorldError, match="slots"):
        CastConfig(("imp",), slots=0)


def test_things_are_recorded_with_numbers_that_last() -> None:
    image = np.zeros((2, 2, 3), np.uint8)
    first = Observation(image, things=(Thing(7, "imp", 1.0, 2.0, 0.0),))
    second = Observation(image, things=(Thing(8, "clip", 3.0, 4.0, 5.0), Thing(7, "dead", 1.0, 2.0, 0.0)))
    names, told = _pack_things([first, second])
    assert names == ["clip", "dead", "imp"] and told is not None
    assert told[0].tolist() == [[8, 3, 1, 2, 0], [0, 0, 0, 0, 0]]
    assert told[1].tolist() == [[9, 1, 3, 4, 5], [8, 2, 1, 2, 0]]
    assert _pack_things([Observation(image)]) == ([], None)


def cast_data(root: Path, ticks: int = 110) -> Path:
    """Episodes in which a red imp walks before a player who stands still, and a clip lies there."""
    tiny_data(root, ticks=ticks)
    for folder in [f for split in ("train", "val") for f in (root / split).iterdir()]:
        episode = read_episode(folder)
        path = 0.3 * np.sin(np.arange(ticks + 1) / 9)
        told = np.zeros((ticks + 1, 2, 5), np.float32)
        told[:, 0] = np.stack([np.full(ticks + 1, v) for v in (1, 1, 1.6, 0, 0)], 1)
        told[:, 0, 3] = path
        told[:, 1] = (2, 2, 1.2, 0.8, 0)
        told[:20, 0] = 0  # it comes a little later
        depth = np.full((ticks + 1, HEIGHT // 4, WIDTH // 4), 4.0, np.float16)
        frames = np.array(episode.frames)
        labels = np.zeros((ticks + 1, 2, 5), np.int16)
        for t in range(ticks + 1):
            for n, (y, ahead) in enumerate(((path[t], 1.6), (0.8, 1.2))):
                x = round((1 - y / ahead) * WIDTH / 2)
                box = np.s_[t, HEIGHT // 2 : HEIGHT // 2 + 8, max(0, x - 4) : x + 4]
                frames[box] = (250, 0, 0) if n == 0 else (0, 250, 0)
                labels[t, n] = (n + 1, x - 4, HEIGHT // 2, 8, 8)
                depth[t, HEIGHT // 8 : HEIGHT // 8 + 3, max(0, x // 4 - 1) : x // 4 + 2] = ahead
        header = dict(episode.header) | {
            "labels": ["imp", "clip"],
            "things": ["imp", "clip"],
            "source": "rooms",
        }
        arrays = {k: v if v is None else np.array(v) for k, v in vars(episode).items() if k != "header"}
        arrays |= {"frames": frames, "depth": depth, "things": told, "labels": labels}
        arrays["pose"] = np.zeros((ticks + 1, 3), np.float32)
        shutil.rmtree(folder)
        write_episode(folder, Episode(header, **arrays))
    return root


def dataset(root: Path, split: str) -> LatentDataset:
    episodes = [read_episode(f) for f in sorted((root / split).iterdir())]
    rng = np.random.default_rng(0)
    latents = [rng.normal(size=(len(e.frames), 4, *LATENT_GRID)).astype(np.float16) for e in episodes]
    return LatentDataset(episodes, latents, (0.0, 0.0), 4.0)


def test_the_stages_of_a_cast_learn_and_what_they_count_is_so(tmp_path: Path) -> None:
    root = cast_data(tmp_path / "data")
    train, val = dataset(root, "train"), dataset(root, "val")
    world = tiny_model(config=CASTING)
    assert world.cast is not None
    with torch.no_grad():
        world.cast.sprites.paint.zero_()
        world.cast.behaviour.ways.zero_()
    for name in ("sprites", "behaviour", "spotter"):
        stage = cast_stage(name, world, train, val, "cpu")
        optimizer = torch.optim.Adam(stage.model.parameters(), 0.01)
        losses = []
        for step in range(12):
            loss, told = stage.loss(stage.batch(np.random.default_rng(step % 2), 0.0), 0.0)  # type: ignore[arg-type]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            assert all(math.isfinite(v) for v in told.values())
        assert min(losses[-2:]) < losses[0], name
        assert all(math.isfinite(v) for v in stage.preview(tmp_path / f"{name}.png").values())
    assert (tmp_path / "sprites.png").exists()
    assert world.cast.spotter.residents[0].tolist() == pytest.approx([CLIP, 0.3, 0.2, 0.0])
    # The imp comes at one place, and its ways are steps to the left and right.
    assert float(world.cast.behaviour.gates[0, 0]) == pytest.approx(0.4, abs=0.01)
    assert float(world.cast.behaviour.ways[:, 1].abs().max()) > 0.005
    assert not world.cast.behaviour.ways[:, [0, 2]].abs().max() > 1e-3
    red = world.cast.sprites.paint[1, :3].mean((1, 2))
    assert red[0] > red[1] and red[0] > red[2]
    decoder = DecoderStage(world, train, None, None, "cpu", batch_size=2, clip_ticks=6, per_clip=1)  # type: ignore[arg-type]
    batch = decoder.batch(np.random.default_rng(0), 0.0)
    assert batch.things is not None and batch.things.shape == (2, 4, HEIGHT, WIDTH)
    assert math.isfinite(decoder.loss(batch, 0.0)[0].item())


@pytest.mark.slow
def test_the_stages_of_a_cast_run_on_another_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = cast_data(tmp_path / "data")
    train, val = dataset(root, "train"), dataset(root, "val")
    with other_device(monkeypatch) as device:
        world = tiny_model(config=CASTING).to(device)
        assert world.cast is not None
        with torch.no_grad():
            world.cast.sprites.paint.zero_()
            world.cast.behaviour.ways.zero_()
        for name in ("sprites", "behaviour", "spotter"):
            stage = cast_stage(name, world, train, val, device)
            stage.loss(stage.batch(np.random.default_rng(0), 0.0), 0.0)[0].backward()  # type: ignore[arg-type]
        decoder = DecoderStage(world, train, None, None, device, batch_size=2, clip_ticks=6, per_clip=1)  # type: ignore[arg-type]
        decoder.loss(decoder.batch(np.random.default_rng(0), 0.0), 0.0)[0].backward()


def test_the_source_says_which_kinds_there_are(tmp_path: Path) -> None:
    data = cast_data(tmp_path / "data")
    walk = np.random.default_rng(0).normal(size=(111, 3)).astype(np.float32)
    size = np.zeros((1, 160, 256, 3), np.uint8)
    episodes = [replace(read_episode(f), pose=walk, frames=size) for f in (data / "train").iterdir()]
    config = describe_world("tiny", episodes)
    assert config.cast is not None and config.cast.names == ("clip", "imp")
    assert config.dynamics.carry == 0 and config.tokenizer.blend
    blind = [replace(e, things=None) for e in episodes]
    assert describe_world("tiny", blind).cast is None and describe_world("tiny", blind).dynamics.carry > 0
