"""Memory as places: keyframes of a synthetic room, looked at from elsewhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from one_room import ASPECT, LENS, error, keyframes, remembered, room_depth
from tiny import LATENT_GRID, RECALLING, WIDTH, tiny_model
from world_model.map import DETAIL_CHANNELS, FINE_DETAIL, Detail, Gaze
from world_model.nearer import CELLS, TEXEL, Grain, Light, meet, points
from world_model.recall import (
    Sighting,
    Views,
    finer,
    into_view,
    known_part,
    look,
    made_up,
    retrieve,
    take,
    wall_depths,
    worth,
)
from world_model.recollection import COARSE_STEP, hand_on, show_what_was_handed


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
    shows = worth(views, LENS, pose[:, None], ASPECT)[:, 0]
    assert int(retrieve(views, pose, 3, shows)[0, 0]) == 2
    held = views.held.clone()
    held[..., 2] = False
    views = views._replace(held=held)
    assert 2 not in retrieve(views, pose, 5, worth(views, LENS, pose[:, None], ASPECT)[:, 0])[0]
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
    assert decoder.detail is not None and decoder.detail.enter is not None
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


def test_it_is_known_how_far_it_was_from_who_saw_it() -> None:
    views = keyframes([[-0.5, 0.0, 0.0]])
    pose = torch.tensor([[[-0.1, 0.0, 0.0]]])
    coarse = look(views, LENS, pose, 40, 64, ASPECT)
    for found in (coarse, finer(views, LENS, pose, coarse, 4, ASPECT)):
        assert bool(found.known.any())
        off = (found.away - found.depth)[found.known]
        torch.testing.assert_close(off, torch.full_like(off, 0.4), atol=1e-3, rtol=0)


def test_who_comes_near_sees_dark_walls_grow_bright() -> None:
    """Everything is half as bright for each half extent that it is off, in rooms of their own brightness."""
    torch.manual_seed(0)
    light = Light()
    optimizer = torch.optim.Adam(light.parameters(), 3e-3)

    def places() -> tuple[Sighting, Tensor, Tensor]:
        here, there, paint = (torch.rand(16, 1, 10, 16) for _ in range(3))
        room = torch.rand(16, 1, 1, 1) * 0.8 + 0.1
        known = torch.rand(16, 1, 10, 16) > 0.1
        paint = room * (0.7 + 0.3 * paint)
        seen, real = (paint * 0.5 ** (2 * off) for off in (there, here))
        blank = torch.zeros_like(here)
        found = Sighting(blank.long(), blank[..., None], known, blank, here, blank, there)
        colour = (2 * seen - 1) * known
        return found, colour.expand(-1, 3, -1, -1), (2 * real - 1) * known

    def miss() -> Tensor:
        found, colour, real = places()
        lit = (colour + 1) * light(meet(found, colour)) - 1
        return ((lit - real).abs() * found.known).mean()

    found, colour, _ = places()
    assert torch.equal(light(meet(found, colour)), torch.ones(16, 1, 10, 16))  # as it was seen, to begin with
    before = miss().item()
    for _ in range(400):
        optimizer.zero_grad()
        miss().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert miss().item() < 0.3 * before


def test_a_picture_is_lit_part_by_part_and_nothing_is_made_of_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recollection = tiny_model(config=RECALLING).dynamics.recollection
    assert recollection is not None
    views = keyframes([[-0.5, 0.0, 0.0]], columns=recollection.columns)
    pose = torch.tensor([[-0.1, 0.0, 0.3]])
    glimpse = recollection.glimpse(views, pose)
    known = glimpse.found.known[:, 0]
    assert bool(known.any()) and not bool(known.all())
    gain = torch.ones(1, 1, *known.shape[1:])
    gain[..., : gain.shape[-1] // 2] = 3.0
    monkeypatch.setattr(Light, "forward", lambda self, met: gain)
    fine = finer(views, recollection.lens, pose[:, None], glimpse.found, COARSE_STEP, recollection.aspect)
    paint = torch.full((1, 3, *fine.known.shape[2:]), -0.9)
    with torch.no_grad():
        lit = recollection.nearer(paint, views, glimpse, fine, pose)
    whole = known.repeat_interleave(4, 1).repeat_interleave(4, 2)[0]
    assert not bool(lit[0, :, ~whole].any())
    half = paint.shape[-1] // 2
    for part, value in ((slice(half), -0.7), (slice(half, None), -0.9)):
        seen = lit[0, :, :, part][:, whole[:, part]]
        torch.testing.assert_close(seen, torch.full_like(seen, value))


def test_lines_of_sight_end_where_they_lead() -> None:
    pose = torch.tensor([[0.1, -0.2, 0.7]])
    found = points(pose, torch.full((1, 40, 64), 0.5), LENS, ASPECT)
    centre = found[:, 0, 19:21, 31:33].mean((1, 2))
    torch.testing.assert_close(
        centre, torch.tensor([0.1 + 0.5 * np.cos(0.7), -0.2 + 0.5 * np.sin(0.7), 0.0]).float()
    )
    assert float(found[2, 0, 0, 0]) > 0 > float(found[2, 0, -1, 0])
    # As keyframes have it: what is ahead and to the right of a pose.
    ahead, right = into_view(found[:2].movedim(0, -1), pose[:, None, None])
    torch.testing.assert_close(ahead, torch.full_like(ahead, 0.5))
    assert bool((right.diff(dim=-1) > 0).all())


def test_a_place_has_the_same_grain_from_everywhere() -> None:
    grain = Grain()
    where = torch.rand(3, 1, 8, 16) - 0.5
    strength = torch.full((1, len(CELLS), 2, 4), 0.2)
    with torch.no_grad():
        there = grain(strength, where)
        torch.testing.assert_close(grain(strength, where.flip(-1)), there.flip(-1))
        torch.testing.assert_close(Grain()(strength, where), there)
        # Who is within the same texel sees the same, and other places are other.
        texel = (where / TEXEL).floor() * TEXEL
        parts = [grain(strength, texel + part * TEXEL) for part in (0.25, 0.75)]
        assert torch.equal(*parts)
        assert float((grain(strength, where + 0.3).log() - there.log()).abs().mean()) > 0.2
        many = torch.rand(3, 1, 80, 160) - 0.5
        log = grain(strength[:, :, :1, :1].expand(-1, -1, 20, 40), many).log()
        assert abs(float(log.mean())) < 0.05 and float(log.std()) == pytest.approx(
            0.2 * len(CELLS) ** 0.5, 0.1
        )
        assert torch.equal(grain(0 * strength, where), torch.ones(1, 1, 8, 16))


def test_grain_is_for_what_was_farther_off_and_no_finer_than_pixels() -> None:
    grain = Grain()
    grain.leave.bias.data.fill_(0.0)
    here = torch.full((1, 1, 10, 16), 0.05)
    blank, known = torch.zeros_like(here), torch.ones_like(here).bool()
    known[..., :4] = False
    away = here.clone()
    away[..., 8:] = 0.4
    found = Sighting(blank.long(), blank[..., None], known, blank, here, blank, away)
    dull, none = torch.zeros(1, 3, 10, 16), torch.zeros(1, 1, 10, 16)
    strength = grain.strength(meet(found, dull), none, pixel=0.01)
    assert not bool(strength[..., :8].any()), "unknown, or as near as it was"
    assert bool((strength[..., 8:] > 0.1).all())
    twice = grain.strength(meet(found._replace(away=here * 2.8), dull), none, pixel=0.01)
    assert bool((twice[..., 8:] > 0.4 * strength[..., 8:]).all() and (twice < 0.6 * strength.amax()).all())
    # What was made up has it at any distance.
    strength = grain.strength(meet(found, dull), none + 1, pixel=0.01)
    assert not bool(strength[..., :4].any()) and bool((strength[..., 4:] > 0.1).all())
    far_off = found._replace(depth=here * 7, away=away * 7)
    wide = grain.strength(meet(far_off, dull), none, pixel=0.01)[0, :, 0, -1] > 0
    sides = torch.tensor([TEXEL * 2 ** min(cell) for cell in CELLS])
    assert torch.equal(wide, sides > 0.35 * 0.01)


def test_it_is_known_what_was_made_up() -> None:
    views = keyframes([[0.0, 0.0, 0.0], [0.0, 0.0, 1.2]])
    found = look(views, LENS, torch.tensor([[[0.0, 0.0, 0.6]]]), 10, 16, ASPECT)
    assert not bool(made_up(views, found).any())
    made = made_up(views._replace(imagined=torch.tensor([[False, True]])), found)
    assert torch.equal(made[:, 0], (found.which[:, 0] == 1).float())
    assert 0 < float(made.mean()) < 1


def test_a_grain_that_was_never_trained_changes_nothing() -> None:
    recollection = tiny_model(config=RECALLING).dynamics.recollection
    assert recollection is not None
    views, pose = keyframes([[-0.5, 0.0, 0.0]], columns=recollection.columns), torch.tensor([[0.2, 0.0, 0.1]])
    recollection.grain = Grain()
    with torch.no_grad():
        fresh = recollection.detail(views, pose)
        recollection.grain.leave.bias.data.fill_(-100.0)
        plain = recollection.detail(views, pose)
        recollection.grain.leave.bias.data.fill_(0.0)
        grained = recollection.detail(views, pose)
    assert torch.equal(fresh.fine, plain.fine)
    assert not torch.equal(grained.fine, plain.fine) and torch.equal(grained.coarse, plain.coarse)


def test_known_is_what_some_keyframe_shows() -> None:
    views = keyframes([[0.0, 0.0, 0.0]])
    ahead, back = torch.zeros(1, 3), torch.tensor([[0.0, 0.0, np.pi]])
    assert float(known_part(worth(views, LENS, ahead[:, None], ASPECT))) == 1.0
    assert float(known_part(worth(views, LENS, back[:, None], ASPECT))) == 0.0
