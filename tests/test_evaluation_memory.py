"""Memory protocols, the real game as a dreamer, and worlds with a part of their memory taken away."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tiny import ACTIONS, TINY, tiny_data, tiny_model
from toy_game import NAMES, Deaf, Perfect, ToySource, toy_data
from world_model.batch_dream import BatchDream
from world_model.config import AudioConfig
from world_model.data import sources
from world_model.data.sources import Observation
from world_model.dream import DreamEngine
from world_model.evaluation.ablations import ablations, worth
from world_model.evaluation.baselines import CopySeed
from world_model.evaluation.collapse import collapse, real_means, real_rollouts
from world_model.evaluation.plan import Plan
from world_model.evaluation.protocol import Clip, context_of, dream
from world_model.evaluation.real import SourceDreamer
from world_model.evaluation.revisit import loop_closure, recall, retrace, turn
from world_model.evaluation.rollout import one_tick, rollout
from world_model.evaluation.walks import (
    PAUSE,
    EndedError,
    can_mirror,
    out_and_back,
    remembering,
    seen_at,
    there_and_back,
    turn_clips,
    turn_ticks,
    way_out,
)
from world_model.evaluation.windows import CONTEXT, HeldOut, held_out, windows
from world_model.evaluation.worlds import PARTS, AblatedDream, Begun, CheckedDream, check_finite
from world_model.state import DreamState
from world_model.types import Action, DataError, SourceError, WorldError

HEARD = replace(TINY, audio=AudioConfig(latent_dim=8, dim=8, head_dim=16))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> HeldOut:
    return held_out(toy_data(tmp_path_factory.mktemp("toy")))


def test_a_full_turn_comes_back() -> None:
    clips = turn_clips(ToySource(), 3)
    assert clips[0].ticks == 80
    found = turn(Perfect(), clips)
    assert found["psnr"]["mean"] == found["closure"]["mean"] == found["half"]["mean"] == 100
    assert found["random"]["mean"] < 30
    assert turn(CopySeed(), clips)["half"]["mean"] < 30


def test_walks_there_and_back_end_where_they_began() -> None:
    clip = there_and_back(ToySource(), 1, 60)[0]
    assert clip.ticks == 120 + PAUSE and way_out(clip) == 60 and clip.pose is not None
    np.testing.assert_allclose(clip.pose[-1], clip.pose[CONTEXT - 1], atol=1e-5)


class Mortal(ToySource):
    """Ends after some ticks under every other seed, or under all of them."""

    def __init__(self, always: bool = False) -> None:
        self._always = always

    def reset(self, seed: int) -> Observation:
        self._left = 30 if self._always or seed % 2 else 10_000
        return super().reset(seed)

    def step(self, action: int) -> Observation:
        self._left -= 1
        return replace(super().step(action), terminated=self._left < 0)


def test_walks_that_end_in_death_are_left_out() -> None:
    assert [int(c.seed or 0) % 2 for c in there_and_back(Mortal(), 2, 30)] == [0, 0]
    with pytest.raises(DataError, match="ended during 4 of 4 walks"):
        there_and_back(Mortal(always=True), 2, 30)


def test_turns_that_end_in_death_are_left_out() -> None:
    assert [int(c.seed or 0) % 2 for c in turn_clips(Mortal(), 2)] == [0, 0]
    with pytest.raises(DataError, match="ended during 4 of 4 turns"):
        turn_clips(Mortal(always=True), 2)


def test_a_game_that_ends_is_no_false_alarm(data: HeldOut) -> None:
    found = real_rollouts(Mortal(), real_means(data), count=4, ticks=100)
    assert (found["count"], found["ended"]) == (2, 2)


def test_a_walk_turns_away_from_walls() -> None:
    class Walled(ToySource):
        """Everything ahead is near after eight steps forward."""

        def _see(self) -> sources.Observation:
            near = self._at[1] % 24 >= 16
            return replace(super()._see(), clearance=(200.0, 10.0 if near else 300.0, 50.0))

    clip = there_and_back(Walled(), 1, 80)[0]
    assert clip.pose is not None
    ahead = clip.pose[CONTEXT - 1 : CONTEXT + 80, 0]
    walls = np.flatnonzero(ahead % 24 >= 16)
    assert len(walls) and set(clip.actions[CONTEXT - 1 + walls[walls < 80]]) == {NAMES.index("left")}


def test_a_game_without_a_way_back_is_an_error() -> None:
    class Forward(ToySource):
        actions = tuple(Action(name) for name in ("idle", "forward", "left", "right"))

    assert not can_mirror(["idle", "forward", "left", "right"])
    with pytest.raises(DataError, match="cannot be walked backwards"):
        there_and_back(Forward(), 1, 10)


def test_remembered_walks_show_the_way_out_and_ask_for_the_way_back() -> None:
    whole = there_and_back(ToySource(), 2, 50)
    clips = remembering(whole, phases=5)
    assert clips[0].context == 51 + PAUSE and clips[0].ticks == 50
    np.testing.assert_array_equal(clips[0].real(50), clips[0].real(-50 - PAUSE))
    assert clips[0].phase == (CONTEXT - 1) % 5
    good = recall(Perfect(), clips)
    assert 32 + PAUSE <= good["ticks"]["32"]["distance"]["mean"] <= 64 + PAUSE
    for measure in ("remembered", "psnr", "real_own"):
        assert good["ticks"]["32"][measure]["mean"] == 100
    assert good["ticks"]["1"]["same_place"]["mean"] == 1
    assert recall(Deaf(), clips)["ticks"]["32"]["psnr"]["mean"] < 40


def test_a_view_is_remembered_only_where_the_real_game_is_back() -> None:
    clips = remembering(there_and_back(ToySource(), 2, 20), phases=1)
    assert clips[0].pose is not None
    elsewhere = clips[0].pose.copy()
    elsewhere[clips[0].context :, 0] += 1000
    found = recall(Perfect(), [replace(clips[0], pose=elsewhere), clips[1]])["ticks"]["16"]
    assert found["same_place"]["mean"] == 0.5 and found["remembered"]["n"] == 1 and found["psnr"]["n"] == 2


def test_a_player_who_slides_is_back_a_little_later() -> None:
    """The place of a tick on the way back is looked for by its pose, not by the mirrored tick."""
    clip = remembering(there_and_back(ToySource(), 1, 20), phases=1)[0]
    pose = np.zeros((len(clip.frames), 3), np.float32)
    pose[:21, 0] = np.arange(21) * 50  # out
    pose[21 : 21 + PAUSE, 0] = pose[20, 0]
    pose[21 + PAUSE :, 0] = pose[20, 0] - (np.arange(20) - 2) * 50  # three ticks late on the way back
    assert seen_at(replace(clip, pose=pose), 0, 10) == (-PAUSE - 7, True)
    assert seen_at(replace(clip, pose=None), 0, 10) == (-PAUSE - 10, True)


def test_the_way_back_is_held_against_the_dreams_own_way_out() -> None:
    clips = there_and_back(ToySource(), 2, 20)
    assert retrace(Perfect(), clips)["ticks"]["16"]["own"]["mean"] == 100
    frozen = retrace(CopySeed(), clips)["ticks"]["16"]
    assert frozen["own"]["mean"] == 100 and frozen["psnr"] == frozen["copy_seed"]


def test_loop_closure_needs_no_source_and_standing_still_is_told(data: HeldOut) -> None:
    assert turn_ticks(data) == 80
    good, still = loop_closure(Perfect(), data, 4), loop_closure(CopySeed(), data, 4)
    for loop in ("turn", "walk"):
        assert good[loop]["closure"]["mean"] == 100
        assert good[loop]["away"]["mean"] < 60 and still[loop]["away"]["mean"] == 100
    assert loop_closure(Deaf(), data, 4)["walk"]["closure"]["mean"] < 40


def test_mirrored_plans_undo_themselves() -> None:
    plan = out_and_back(NAMES, 40, seed=3, phases=5)
    assert len(plan) == 80 + PAUSE
    undone = {1: 2, 2: 1, 3: 4, 4: 3}
    assert [undone[a] for a in plan[:40]] == plan[40 + PAUSE :][::-1].tolist()
    changes = np.flatnonzero(np.diff(plan[:40])) + 1
    assert len(changes) and not (changes % 5).any()  # whole rounds of the clock


def test_the_real_game_is_a_perfect_dreamer(data: HeldOut) -> None:
    game = SourceDreamer("toy", ToySource)
    found = rollout(game, windows(data, 40, 4, moving=True))
    assert found["ticks"]["32"]["psnr"]["mean"] == 100 and found["ticks"]["32"]["gain"]["low"] > 5
    assert (
        found["ticks"]["32"]["laplacian_ratio"]["mean"] == found["ticks"]["32"]["change_ratio"]["mean"] == 1
    )
    assert collapse(game, data, count=4, ticks=100).summary["collapsed"] == 0
    assert turn(game, turn_clips(ToySource(), 2))["psnr"]["mean"] == 100
    walks = remembering(there_and_back(ToySource(), 2, 20), ToySource.phases)
    assert recall(game, walks)["ticks"]["16"]["psnr"]["mean"] == 100
    game.close()


def test_the_real_game_shows_its_last_picture_and_then_has_ended(data: HeldOut) -> None:
    clip = windows(data, 4, 1, moving=True)[0]

    class Doomed(ToySource):
        """Ends two ticks after the clip's context."""

        def reset(self, seed: int) -> Observation:
            self._left = clip.start + CONTEXT + 1
            return super().reset(seed)

        def step(self, action: int) -> Observation:
            self._left -= 1
            return replace(super().step(action), terminated=self._left <= 0)

    shown = dream(SourceDreamer("toy", Doomed), [clip])
    for k in range(3):
        np.testing.assert_array_equal(next(shown)[0], clip.real(k))
    with pytest.raises(EndedError, match="ended before the protocol did"):
        next(shown)


def test_the_real_game_is_heard(data: HeldOut) -> None:
    class Loud(ToySource):
        def step(self, action: int) -> Observation:
            return replace(super().step(action), sound=np.full((8, 2), action, np.int16))

    clips = windows(data, 2, 2, moving=True)
    for make, loud in ((Loud, True), (ToySource, False)):
        game = SourceDreamer("toy", make)
        game.reset_clips(clips)
        assert game.heard is None
        game.step(np.array([1, 2]))
        assert (game.heard is not None) == loud
        if game.heard is not None:
            assert game.heard.shape == (2, 8, 2) and game.heard[:, 0, 0].tolist() == [1, 2]


def test_a_game_that_does_not_reproduce_its_recording_is_an_error(data: HeldOut) -> None:
    class Other(ToySource):
        def reset(self, seed: int) -> sources.Observation:
            return super().reset(seed + 1)

    clips = windows(data, 4, 1, moving=True)
    with pytest.raises(SourceError, match="does not arrive at the recorded frame"):
        rollout(SourceDreamer("toy", Other), clips, ticks=(1,))
    with pytest.raises(DataError, match="no seed"):
        rollout(SourceDreamer("toy", ToySource), [replace(clips[0], seed=None)], ticks=(1,))
    with pytest.raises(DataError, match="recorded clips"):
        SourceDreamer("toy", ToySource).reset(*context_of(clips))


@pytest.fixture(scope="module")
def tiny_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_data(tmp_path_factory.mktemp("tiny"), episodes=2, ticks=60)


@pytest.fixture(scope="module")
def clips(tiny_root: Path) -> list[Clip]:
    return windows(held_out(tiny_root), 12, 2, moving=False, context=8)


@pytest.fixture
def engine() -> DreamEngine:
    return DreamEngine(tiny_model().for_inference(torch.float32))


def last_frame(dreamer: object, clips: list[Clip]) -> np.ndarray:
    *_, images = dream(dreamer, clips)  # type: ignore[arg-type]
    return images


@pytest.mark.parametrize("part", PARTS)
def test_every_ablation_changes_the_dream_and_leaves_the_engine_as_it_was(
    engine: DreamEngine, clips: list[Clip], part: str
) -> None:
    whole = last_frame(BatchDream(engine), clips)
    assert (last_frame(AblatedDream(engine, part), clips) != whole).any()
    assert engine.use_memory
    np.testing.assert_array_equal(last_frame(BatchDream(engine), clips), whole)


def test_ablations_take_away_what_they_say(engine: DreamEngine, clips: list[Clip]) -> None:
    obs, act, phase = context_of(clips)
    z = torch.stack([engine.encode(o) for o in obs])
    before = engine.start(z, act, phase)

    def edited(part: str) -> DreamState:
        state = before
        for edit in PARTS[part][0]:
            state = edit(state)
        return state

    assert not any(t.any() for layer in edited("zeroed-state").trunk.layers for t in layer.mamba)
    assert edited("no-window").trunk.filled == 0 and before.trunk.filled > 0
    mixed, bank = edited("shuffled-keyframes").bank, before.bank
    assert torch.equal(mixed.keys, bank.keys) and torch.equal(mixed.filled, bank.filled)
    key = [sorted(b.frames[0, b.filled[0]].sum((1, 2, 3)).tolist()) for b in (mixed, bank)]
    assert key[0] == key[1]  # the same pictures, elsewhere


def test_an_ablated_dream_is_never_scored_by_predictions_of_the_whole_one(
    engine: DreamEngine, clips: list[Clip]
) -> None:
    assert one_tick(AblatedDream(engine, "no-memory"), clips)["all"]["ticks"] == len(clips)
    assert one_tick(BatchDream(engine), clips)["all"]["ticks"] == 12 * len(clips)
    with pytest.raises(ValueError, match="unknown ablation"):
        AblatedDream(engine, "no-brain")


@pytest.mark.parametrize("ablated", [False, True])
def test_a_dream_that_comes_to_nan_is_an_error_though_its_pictures_are_pictures(
    engine: DreamEngine, clips: list[Clip], ablated: bool
) -> None:
    with torch.no_grad():
        engine.model.dynamics.head.out.bias.fill_(torch.nan)
    pictures = last_frame(BatchDream(engine), clips)
    assert pictures.dtype == np.uint8
    dreamer = AblatedDream(engine, "no-window") if ablated else CheckedDream(engine)
    with pytest.raises(WorldError, match="NaN"):
        last_frame(dreamer, clips)


def test_one_tick_ahead_of_a_dream_that_comes_to_nan_is_an_error_too(
    engine: DreamEngine, clips: list[Clip]
) -> None:
    with torch.no_grad():
        engine.model.dynamics.head.out.bias.fill_(torch.nan)
    assert one_tick(BatchDream(engine), clips)["all"]["ticks"]  # it would be scored
    with pytest.raises(WorldError, match="NaN"):
        one_tick(CheckedDream(engine), clips)


def test_sound_that_is_no_number_is_an_error_not_silence(clips: list[Clip]) -> None:
    engine = DreamEngine(tiny_model(config=HEARD).for_inference(torch.float32))
    dreamer = CheckedDream(engine)
    last_frame(dreamer, clips)
    state = dreamer._state
    assert state is not None and state.sound is not None
    broken = state.sound._replace(latent=torch.full_like(state.sound.latent, torch.nan))
    with pytest.raises(WorldError, match="NaN"):
        check_finite(replace(state, sound=broken), "tiny")
    assert engine.model.audio is not None
    with torch.no_grad():
        next(engine.model.audio.head.parameters()).fill_(torch.nan)
    with pytest.raises(WorldError, match="NaN or infinity in its sound"):
        last_frame(dreamer, clips)


def test_an_ablated_world_is_heard_and_reseeded_as_the_whole_one(clips: list[Clip]) -> None:
    engine = DreamEngine(tiny_model(config=HEARD).for_inference(torch.float32))
    ablated = AblatedDream(engine, "no-window", "tiny")
    first = last_frame(ablated, clips)
    assert ablated.heard is not None and ablated.heard.shape[0] == len(clips)
    other = ablated.reseeded(5)
    assert isinstance(other, AblatedDream) and other.name == ablated.name
    assert (last_frame(other, clips) != first).any()


def test_ablations_are_one_command_with_a_report(
    engine: DreamEngine, tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = Plan(ablation_windows=2, ablation_ticks=8, walks=0, walk_ticks=10)
    said: list[str] = []
    found = ablations(BatchDream(engine, "tiny"), tiny_root, tmp_path, plan, progress=said.append)
    assert set(found["without"]) == set(PARTS) and "n" in found["without"]["no-window"]["rollout"]["8"]
    assert len(said) == 1 + len(PARTS) and len(ACTIONS) == 4
    assert "| Tick | whole | no-keyframes |" in (tmp_path / "ablations.md").read_text()
    assert "no-memory" in (tmp_path / "ablations.html").read_text()


def recalled(psnr: dict[int, list[float]], distance: dict[int, list[float]]) -> dict[str, Any]:
    """A result of `revisit.recall` over two walks."""
    marks = {str(k): {"psnr": v, "copy_seed": [12.0, 12.0], "distance": distance[k]} for k, v in psnr.items()}
    ticks = {k: {"psnr": {"mean": mark["psnr"][0], "low": None, "high": None}} for k, mark in marks.items()}
    clips = [["seed 1700000000", 0], ["seed 1700000001", 0]]
    return {"clips": clips, "context": 4, "ticks": ticks, "per_clip": marks}


def test_the_worth_of_a_memory_is_that_of_views_of_long_ago() -> None:
    distance = {1: [12.0, 13.0], 64: [138.0, 140.0], 400: [810.0, 390.0]}
    whole = recalled({1: [30.0, 30.0], 64: [25.0, 24.0], 400: [20.0, 23.0]}, distance)
    without = recalled({1: [10.0, 10.0], 64: [22.0, 20.0], 400: [40.0, 22.0]}, distance)
    found = worth(whole, without)  # 3 and 4 at 64, and 1 of the walk that came by 390 ticks before 400
    assert found is not None and found["n"] == 3 and found["mean"] == pytest.approx(8 / 3, abs=1e-3)
    near = {1: distance[1]}
    assert worth(recalled({1: [30.0, 30.0]}, near), recalled({1: [10.0, 10.0]}, near)) is None


def test_ablations_with_a_game_tell_of_views_and_turns(
    engine: DreamEngine, tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clips: list[Clip]
) -> None:
    walks = [replace(c, pose=None, context=6) for c in clips]
    monkeypatch.setattr("world_model.evaluation.ablations._played", lambda *_: (walks, clips))
    far = recalled({64: [25.0] * len(walks)}, {64: [138.0] * len(walks)})
    far["clips"] = [[f"seed {1_700_000_000 + i}", 0] for i in range(len(walks))]
    monkeypatch.setattr("world_model.evaluation.ablations.recall", lambda *_: far)
    looked: list[int] = []
    start = engine.start

    def counted(*args: Any, **kwargs: Any) -> DreamState:
        looked.append(1)
        return start(*args, **kwargs)

    monkeypatch.setattr(engine, "start", counted)
    plan = Plan(ablation_windows=2, ablation_ticks=8)
    dream = BatchDream(engine, "tiny")
    found = ablations(dream, tiny_root, tmp_path, plan, "mazes_small", beside={"plain": dream})
    assert set(found["turn"]) == {"whole", *PARTS, "plain"}
    assert found["remembered"]["spans"]["128 to 255"]["plain"]["mean"] == 25.0
    assert found["remembered"]["textures"]["combined anew"]["episodes"] == len(walks) // 2
    said = (tmp_path / "ablations.md").read_text()
    assert "After 360 degrees" in said and "| no-keyframes | +0.00 dB" in said and "combined anew" in said
    # Two dreamers look at each context, and for the others it was looked at with keyframes or without.
    assert len(looked) == 4 * 2


def test_the_start_of_an_ablated_dream_is_not_that_of_another_context(
    engine: DreamEngine, clips: list[Clip]
) -> None:
    begun: Begun = {}
    first, second = (AblatedDream(engine, part, begun=begun) for part in ("no-window", "zeroed-state"))
    alone = last_frame(AblatedDream(engine, "zeroed-state"), clips)
    last_frame(first, clips)
    np.testing.assert_array_equal(last_frame(second, clips), alone)
    assert len(begun) == 1
    last_frame(second, [replace(c, actions=c.actions[::-1].copy()) for c in clips])
    assert len(begun) == 2
