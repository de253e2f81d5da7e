"""What a motion makes of what is seen: the geometry, and that trunk and head are told of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tiny import HEIGHT, TINY, WIDTH, tiny_data, tiny_model
from world_model.carry import FARTHEST, FINER, NEARNESS, Carry
from world_model.data.dataset import Clips, LatentDataset, load_split
from world_model.dream import DreamEngine
from world_model.dynamics import Step, TrunkOutput
from world_model.field import centres
from world_model.map import SEEN_CHANNELS, Detail
from world_model.training import tokenizer_stage
from world_model.training.carry_stage import CarryStage
from world_model.training.decoder_stage import DecoderStage
from world_model.training.dynamics_stage import (
    STAGES,
    DynamicsStage,
    attention,
    keep_loss,
    own_steps,
    painting,
)
from world_model.training.preview import RolloutPreview
from world_model.training.publish import choose_scenes
from world_model.training.run import foreign_stages
from world_model.training.tokenizer_stage import TokenizerPreview

CARRYING = replace(
    TINY, dynamics=replace(TINY.dynamics, carry=3), tokenizer=replace(TINY.tokenizer, blend=True)
)
ROWS, COLUMNS = 40, 64


def moved(picture: Tensor, motion: tuple[float, float, float], depth: float = FARTHEST) -> Tensor:
    """A picture (ROWS, COLUMNS) as all of it looks after a motion, if it is `depth` ahead then."""
    carry = Carry(4, 3, horizon=0.5)
    at = carry._from(torch.tensor([motion]), torch.full((1, ROWS, COLUMNS), depth))
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
    depth = torch.full((1, ROWS, COLUMNS), 0.25)
    at = carry._from(torch.tensor([[0.05, 0.0, 0.0]]), depth)[0, :, COLUMNS // 2, 1]
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


def told(nearness: float, glass: float) -> Carry:
    """A carry to which everything is as near as that, and on the glass or not."""
    carry = Carry(4, 8, horizon=0.5)
    last = carry.read[-2]
    assert isinstance(last, torch.nn.Conv2d)
    torch.nn.init.zeros_(last.weight)
    raw = torch.tensor(nearness / NEARNESS).expm1().log()
    last.bias.data = torch.cat([raw.expand(FINER**2), torch.full((FINER**2,), glass)])
    return carry


def test_a_picture_moves_but_for_what_is_on_the_glass() -> None:
    picture = stripe(0.2).expand(1, 3, ROWS, COLUMNS)
    z, turn = torch.zeros(1, 4, ROWS // 16, COLUMNS // 16), torch.tensor([[0.0, 0.0, 0.15]])
    with torch.no_grad():
        for mode in ("bilinear", "bicubic"):
            out = told(0.1, glass=-20.0)(picture, z, turn, mode)
            assert abs(where(out[0, 0]) - 0.05) < 0.01
        torch.testing.assert_close(told(0.1, glass=20.0)(picture, z, turn), picture)
        step = torch.tensor([[0.05, 0.0, 0.0]])
        near, far = (told(n, glass=-20.0)(picture, z, step)[0, 0] for n in (4.0, 0.02))
    assert where(near) > 0.22 > where(far)


def test_what_turns_into_view_has_the_depth_that_it_had() -> None:
    carry = told(0.1, glass=-20.0)
    near = torch.full((1, 1, ROWS // 4, COLUMNS // 4), 0.1)
    near[..., : COLUMNS // 8] = 4.0  # the left half is near
    carry.reading = lambda z: (near, torch.zeros_like(near))  # type: ignore[method-assign]
    picture, z = stripe(0.1).expand(1, 3, ROWS, COLUMNS), torch.zeros(1, 4, 2, 4)
    motions = torch.tensor([[0.05, 0.0, 0.4], [0.0, 0.0, 0.4]])  # to the left: it is on the right then
    with torch.no_grad():
        out, turned = (carry(picture, z, m[None])[0, 0] for m in motions)
    assert where(out) - where(turned) > 0.01  # nearer, it stands more to the left


def test_clip_equals_steps_and_what_is_carried_reaches_mean_and_head() -> None:
    trunk = tiny_model(config=CARRYING).dynamics.trunk
    z, act, phase, step = clip(5)
    carried = z.roll(1, -1)
    with torch.no_grad():
        whole = trunk(z, act, phase, step, None, carried)
        state = trunk.init_state(2)
        for t in range(5):
            now = Step(*(s[:, t] for s in step))
            out, state = trunk.step(z[:, t], act[:, t], phase[:, t], now, None, state, carried[:, t])
            torch.testing.assert_close(out.mean, whole.mean[:, t], rtol=0, atol=2e-2)
        torch.testing.assert_close(whole.carried, carried)
        assert not torch.allclose(trunk(z, act, phase, step, None).mean, whole.mean, atol=1e-4)


@pytest.mark.parametrize("steps", [1, 2])
def test_cells_that_need_no_painting_stay_as_they_are_carried(steps: int) -> None:
    head = tiny_model(config=CARRYING).dynamics.head
    g = torch.Generator().manual_seed(0)
    noise, mean, present = (torch.rand(2, 4, 2, 4, generator=g) - 0.5 for _ in range(3))
    features, wish = torch.zeros(2, 16 + SEEN_CHANNELS, 2, 4), torch.full((2, 1, 2, 4), -1.0)
    wish[..., :2] = 1.0
    head.forward = lambda *_: (mean, wish)  # type: ignore[method-assign]
    out = head.sample(noise, mean, present, features, steps)
    torch.testing.assert_close(out[..., :2], present[..., :2])
    torch.testing.assert_close(out[..., 2:], mean[..., 2:])
    assert tiny_model().dynamics.head.keep is None


def test_keeping_pays_where_it_is_not_much_worse() -> None:
    clean, cost = torch.zeros(1, 4, 1, 3), torch.ones(1, 1, 1, 3)
    present, painted = torch.tensor([0.1, 0.11, 0.2]).expand(1, 4, 1, 3), torch.full((1, 4, 1, 3), 0.1)
    logits = torch.zeros(1, 1, 1, 3, requires_grad=True)
    keep_loss(logits, painted, present, clean, cost, cost * 1.5).backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert (logits.grad < 0).flatten().tolist() == [True, True, False]
    sure = torch.full((1, 1, 1, 3), 19.0, requires_grad=True)  # what was wrong from the start can still turn
    keep_loss(sure, painted, present, clean, cost, cost * 1.5).backward()  # type: ignore[no-untyped-call]
    assert sure.grad is not None and float(sure.grad[..., 2]) > 1e-3 > -float(sure.grad[..., 0])


def test_what_nothing_covers_is_rather_painted_and_what_moves_rather_kept() -> None:
    z = torch.zeros(1, 3, 4, 1, 2)
    lively = torch.tensor([0.0, 1.0]).expand(1, 3, 1, 2)
    clips = Clips(z, z, z, None, z, z, None, z, z, lively=lively)
    dear = painting(clips, z[:, :-1])
    assert dear.shape == (1, 2, 1, 1, 2) and bool((dear[..., 0] < 1).all() and (dear[..., 1] > 1).all())
    weight = attention(clips, z[:, :-1])
    assert weight.shape == dear.shape and float(weight.mean()) == pytest.approx(1.0)
    assert bool((attention(replace(clips, lively=None), z[:, :-1]) == 1).all())


def test_whether_to_keep_is_asked_of_real_moments_alone() -> None:
    z = torch.zeros(1, 3, 4, 1, 2)
    dreamed = torch.stack((z[:, 0], z[:, 1] + 0.1), 1)
    clips = Clips(z, z, z, None, z, z, None, z, z, lively=torch.tensor([0.0, 1.0]).expand(1, 3, 1, 2))
    dear, weight = painting(clips, dreamed), attention(clips, dreamed)
    rest = float(weight[0, 0, 0, 0, 0])
    assert float(weight[0, 0, 0, 0, 1]) > rest and bool((weight[:, 1] == rest).all())
    assert bool((dear[:, 0] > 0).all() and (dear[:, 1] == 0).all())
    logits = torch.ones(1, 1, 1, 2, requires_grad=True)
    one = torch.ones(1, 4, 1, 2)
    keep_loss(logits, one, one * 2, one * 0, one[:, :1], dear[:, 1]).backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None and not logits.grad.any()


def test_a_latent_is_carried_through_its_picture() -> None:
    world = tiny_model(config=CARRYING)
    z, _, _, step = clip(3)
    carried = world.carried(z, step.motion)
    assert carried is not None and carried.shape == z.shape
    one = world.carried(z[:, 1], step.motion[:, 1])
    assert one is not None
    torch.testing.assert_close(one, carried[:, 1], rtol=0, atol=1e-5)
    assert tiny_model().carried(z, step.motion) is None


def test_what_is_kept_for_one_who_stands_still_is_kept_as_it_is() -> None:
    """Looked at again and again, it would slowly become something else."""
    world = tiny_model(config=CARRYING)
    z, _, _, step = clip(3)
    keep = world.dynamics.head.keep
    assert keep is not None and keep.bias is not None
    torch.nn.init.zeros_(keep.weight)
    motion = step.motion[:, 0].clone()
    motion[0] = 1e-4
    carried = world.carried(z[:, 0], motion)
    assert carried is not None
    features = torch.zeros(len(z), 16 + SEEN_CHANNELS, 2, 4)
    out = TrunkOutput(torch.zeros_like(carried), features, carried)
    for wish in (1.0, -1.0):
        torch.nn.init.constant_(keep.bias, wish)
        with torch.no_grad():
            painted = world.paint(torch.zeros_like(carried), out, z[:, 0], motion, 2)
        assert torch.equal(painted[0], z[0, 0]) == (wish > 0)
        assert torch.equal(painted[1], carried[1].clamp(-1, 1)) == (wish > 0)


def test_a_dream_is_carried_along() -> None:
    first, second = tiny_model(config=CARRYING), tiny_model(config=CARRYING)
    assert second.dynamics.carry is not None
    second.dynamics.carry.spread.fill_(3.0)
    z = torch.rand(1, 3, 4, 2, 4) - 0.5
    with torch.no_grad():
        means = []
        for world in (first, second):
            engine = DreamEngine(world.eval())
            state = engine.start(z, np.zeros((1, 2), np.int64), np.zeros(1, np.int64))
            means.append(engine.tick(state, torch.tensor([1])).z)
    assert not torch.allclose(*means, atol=1e-5)


def test_a_world_in_which_nothing_moves_has_no_such_stage() -> None:
    assert "carry" in foreign_stages(TINY) and "carry" not in foreign_stages(CARRYING)
    assert tiny_model().dynamics.carry is None


def test_where_the_latent_is_chosen_the_picture_is_that_of_the_latent_alone() -> None:
    decoder = tiny_model(config=CARRYING).tokenizer.decoder
    assert decoder.detail is not None and decoder.detail.choose is not None
    z, cells = torch.randn(1, 4, 2, 4), (HEIGHT // 2, WIDTH // 2)
    coarse = torch.randn(1, TINY.tokenizer.detail_dim[0], HEIGHT // 4, WIDTH // 4)
    detail = Detail(coarse, torch.randn(1, TINY.tokenizer.detail_dim[1], *cells))
    alone, painted = decoder(z), decoder.detail.paint(detail.fine)
    for layer in (decoder.detail.choose, decoder.detail.correct):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    for bias, expected in ((-30.0, alone), (30.0, painted)):
        nn.init.constant_(decoder.detail.choose.bias, bias)  # type: ignore[arg-type]
        torch.testing.assert_close(decoder(z, detail), expected.float(), rtol=0, atol=1e-5)


def boxed_data(folder: Path) -> LatentDataset:
    """Episodes with a thing in the upper left corner, and random latents."""
    boxes = np.zeros((41, 1, 5), np.int16)
    boxes[:, 0] = 1, 0, 0, WIDTH // 4, HEIGHT // 2
    episodes = [replace(e, labels=boxes) for e in load_split(tiny_data(folder), "train")]
    rng = np.random.default_rng(0)
    latents = [rng.normal(size=(41, 4, 2, 4)).astype(np.float16) for _ in episodes]
    return LatentDataset(episodes, latents, (0.0, 0.0), 4.0)


def test_the_decoder_that_the_carry_looks_at_stays_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer_stage, "WHOLE", (HEIGHT, WIDTH))
    data, world = boxed_data(tmp_path), tiny_model(config=CARRYING)
    still = TokenizerPreview(list(data.episodes), torch.device("cpu"))
    stage = DecoderStage(world, data, RolloutPreview(list(data.episodes), 1), still, "cpu", clip_ticks=8)
    z, detail = torch.randn(1, 4, 2, 4), world.tokenizer.decoder.detail
    assert detail is not None
    before, painted = world.tokenizer.decode(z), detail.out.weight.detach().clone()
    optimizer = torch.optim.Adam(stage.model.parameters(), 1e-2)
    loss, _ = stage.loss(stage.batch(np.random.default_rng(1), 0.0), 0.0)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    assert torch.equal(world.tokenizer.decode(z), before)
    assert not torch.equal(detail.out.weight, painted)


@pytest.mark.parametrize("name", ["trunk", "head", "rollout"])
def test_what_a_stage_thinks_of_is_carried_anew_where_it_is_dreamed(tmp_path: Path, name: str) -> None:
    data, world = boxed_data(tmp_path), tiny_model(config=CARRYING)
    settings = replace(STAGES[name], batch_size=2)
    stage = DynamicsStage(settings, world, data, RolloutPreview(list(data.episodes), 1), "cpu")
    clips, dreamed = stage.batch(np.random.default_rng(0), 0.0), 0
    for seed in range(4):
        torch.manual_seed(seed)
        with torch.no_grad():
            step, retrieved = own_steps(world.dynamics, clips), stage._retrieved(clips)
            own_context = stage._dream if name == "rollout" else stage._own_context
            z, carried = own_context(clips, clips.z[:, :-1], step, retrieved)
            again = world.carried(z, step.motion)
        assert carried is not None and again is not None
        torch.testing.assert_close(carried, again, rtol=0, atol=1e-5)
        assert torch.equal(z[:, : settings.context], clips.z[:, : settings.context])
        dreamed += not torch.equal(z, clips.z[:, :-1])
    assert dreamed


def test_the_stage_learns_depths(tmp_path: Path) -> None:
    data = boxed_data(tmp_path)
    world = tiny_model(config=CARRYING)
    stage = CarryStage(world, data, data, "cpu")
    carry, place = world.dynamics.carry, world.dynamics.place
    assert carry is not None and place is not None
    assert float(carry.spread) == float(place.map.surfaces.spread)
    batch = stage.batch(np.random.default_rng(1), 0.0)
    optimizer = torch.optim.Adam(stage.model.parameters(), 1e-2)
    losses, depths = [], []
    for _ in range(20):
        loss, metrics = stage.loss(batch, 0.0)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
        depths.append(metrics["depth"])
    assert losses[-1] < losses[0] and depths[-1] < depths[0]
    assert set(metrics) == {"depth", "picture"}
    scores = stage.preview(tmp_path / "carry.png")
    assert {"carried", "carried_lively", "left", "left_lively"} == set(scores)
    assert (tmp_path / "carry.png").exists()


def test_scenes_begin_where_there_is_most_to_be_met(tmp_path: Path) -> None:
    boxes = np.zeros((41, 1, 5), np.int16)
    boxes[20:, 0] = 1, 0, 0, WIDTH // 4, HEIGHT // 2
    episodes = [replace(e, labels=boxes) for e in load_split(tiny_data(tmp_path), "train")]
    chosen = choose_scenes(episodes, 4, 4)
    assert len(chosen) == 4 and all(e.labels is not None and e.labels[s + 3][0, 0] for e, s in chosen)
