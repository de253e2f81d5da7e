"""Evaluation: broken dreamers are caught, a perfect one is not, broken input is never a better score."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from toy_game import HEIGHT, NAMES, WIDTH, Broken, Deaf, Perfect, toy_data, toy_episode
from world_model.data.episodes import Episode, write_episode
from world_model.evaluation.baselines import (
    Blurred,
    CopySeed,
    Frozen,
    MeanFrame,
    Noise,
    OneTexture,
    Persistence,
)
from world_model.evaluation.collapse import collapse, false_alarms, real_means
from world_model.evaluation.control import control, delta_psnr, real_turns
from world_model.evaluation.probe import path_error, train_probe
from world_model.evaluation.protocol import Clip, Dreamer, Images, Ints, dream
from world_model.evaluation.realness import real_or_dream
from world_model.evaluation.rollout import one_tick, rollout
from world_model.evaluation.summary import summary_markdown
from world_model.evaluation.wander import LOOK_AROUND, kind, mirrored, turning, wander
from world_model.evaluation.windows import CONTEXT, HeldOut, clip_moved, held_out, moved, windows
from world_model.types import DataError, WorldError

HEAD = {"data": {"episodes": ["a"], "ticks": 1, "source": "toy", "context": CONTEXT}}
"""What the summary of an evaluation cannot do without."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_data(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def data(root: Path) -> HeldOut:
    return held_out(root)


def test_windows_are_even_deterministic_and_moving(data: HeldOut) -> None:
    clips = windows(data, 40, 9, moving=True)
    assert [c.episode for c in clips].count("ep_002") == 3
    assert [c.start for c in clips] == [c.start for c in windows(data, 40, 9, moving=True)]
    assert [c.start for c in clips] != [c.start for c in windows(data, 40, 9, moving=True, seed=1)]
    for clip in clips:
        motion = clip_moved(clip)
        assert motion[:8].mean() >= 0.5 and motion[:32].mean() >= 0.5 and motion.mean() >= 0.5
        assert clip.ticks == 40 and len(clip.future) == 40 and clip.phase == clip.start % 5


def test_a_window_is_aligned_with_its_episode(data: HeldOut) -> None:
    clip = windows(data, 10, 3, moving=False)[1]
    episode = data.episodes[data.names.index(clip.episode)]
    at = clip.start + CONTEXT - 1
    np.testing.assert_array_equal(clip.real(0), episode.frames[at])
    np.testing.assert_array_equal(clip.real(10), episode.frames[at + 10])
    np.testing.assert_array_equal(clip.future, episode.actions[at : at + 10])


def test_strafing_is_no_turn() -> None:
    names = ["idle", "forward", "left", "strafe_left", "shoot_right", "forward_right"]
    assert turning(names) == [2, 4, 5]
    assert [kind(n) for n in names] == ["other", "walk", "turn", "other", "turn", "walk"]
    assert set(wander(names, 200, seed=3)[-LOOK_AROUND:].tolist()) <= {2, 4}


def test_standing_still_is_no_moving_window(tmp_path: Path) -> None:
    write_episode(tmp_path / "val" / "ep_1", toy_episode(1, still=True))
    still = held_out(tmp_path)
    assert not moved(still.episodes[0]).any()
    assert len(windows(still, 40, 4, moving=False)) == 4
    with pytest.raises(DataError, match="moving windows"):
        windows(still, 40, 4, moving=True)


def test_without_a_pose_the_picture_tells_motion() -> None:
    episode = toy_episode(1)
    blind = Episode(
        **{k: getattr(episode, k) for k in ("header", "frames", "actions", "phases", "sound", "rewards")},
        pose=None,
    )
    assert (moved(blind) == moved(episode)).mean() > 0.9


def test_no_held_out_split_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no episodes"):
        held_out(tmp_path)


def test_a_seed_of_the_training_split_is_not_held_out(tmp_path: Path) -> None:
    root = toy_data(tmp_path, ("train", "val"))
    assert len(held_out(root).episodes) == 3
    write_episode(root / "train" / "ep_same", toy_episode(2))
    with pytest.raises(DataError, match="the seed 2 is in train and in val"):
        held_out(root)


def test_too_short_episodes_are_an_error(data: HeldOut) -> None:
    with pytest.raises(DataError, match="collect longer"):
        windows(data, 1000, 4, moving=False)


def test_copy_seed_gains_nothing_and_a_perfect_dreamer_everything(data: HeldOut) -> None:
    clips = windows(data, 40, 6, moving=True)
    copy = rollout(CopySeed(), clips)
    perfect = rollout(Perfect(), clips)
    assert copy["ticks"]["8"]["gain"] == {"mean": 0, "low": 0, "high": 0, "n": 6, "episodes": 3}
    assert perfect["ticks"]["32"]["psnr"]["mean"] == 100
    assert perfect["ticks"]["32"]["gain"]["low"] > 5
    assert perfect["ticks"]["8"]["laplacian_ratio"]["mean"] == 1
    assert list(perfect["ticks"]) == ["1", "4", "8", "16", "32"]


def standing(clip: Clip, ticks: int) -> Clip:
    """The clip with its last context frame held for so many ticks."""
    frames = np.array(clip.frames)
    frames[clip.context : clip.context + ticks] = clip.real(0)
    return replace(clip, frames=frames)


def test_a_picture_that_has_not_changed_does_not_count_for_a_gain(data: HeldOut) -> None:
    """One window of six in which the real game stood still would pull the mean by 80 dB / 6."""
    clips = windows(data, 16, 6, moving=True)
    still = [standing(clips[0], 4), *clips[1:]]
    whole, found = (rollout(MeanFrame(), c, (4, 8))["ticks"] for c in (clips[1:], still))
    assert found["4"]["gain"] == whole["4"]["gain"] and found["4"]["copy_seed"] == whole["4"]["copy_seed"]
    assert found["4"]["gain"]["n"] == 5 and found["8"]["gain"]["n"] == found["4"]["psnr"]["n"] == 6
    assert found["4"]["gain_5"]["n"] == 5  # its ticks 2 to 6
    assert "gain" in rollout(MeanFrame(), still, (4,))["per_clip"]["4"]


def test_where_nothing_changed_there_is_no_gain(data: HeldOut) -> None:
    clips = [standing(c, 8) for c in windows(data, 8, 3, moving=True)]
    found = rollout(Perfect(), clips, (8,))["ticks"]["8"]
    assert found["gain"] is found["gain_5"] is found["gain_median"] is found["copy_seed"] is None


def test_persistence_shows_the_frame_before_while_the_recorded_actions_are_fed(data: HeldOut) -> None:
    clip = windows(data, 8, 1, moving=True)[0]
    shown = [images[0].copy() for images in dream(Persistence(), [clip])]
    np.testing.assert_array_equal(shown[5], clip.real(4))
    other = np.full((1, 8), 0, np.int64)
    held = [images[0].copy() for images in dream(Persistence(), [clip], other)]
    np.testing.assert_array_equal(held[-1], clip.real(0))


class Counting(Perfect):
    """Counts how many ticks it paints and how many it only dreams."""

    def __init__(self) -> None:
        self.painted = self.blind = 0

    def step(self, act: Ints) -> Images:
        self.painted += 1
        return super().step(act)

    def advance(self, act: Ints) -> None:
        self.blind += 1
        super().step(act)


def test_ticks_that_nobody_looks_at_are_not_painted_and_change_nothing(data: HeldOut) -> None:
    clips = windows(data, 40, 2, moving=True)
    counting = Counting()
    assert rollout(counting, clips, (8, 32)) == rollout(Perfect(), clips, (8, 32))
    assert counting.painted == 10 and counting.blind == 30


def test_the_watcher_is_shown_what_is_scored(data: HeldOut) -> None:
    clips = windows(data, 16, 5, moving=True)
    seen: list[tuple[int, Images]] = []
    rollout(Perfect(), clips, batch=2, watch=lambda k, made, real: seen.append((k, made)), watched={3})
    assert [k for k, _ in seen] == [3, 3, 3]
    np.testing.assert_array_equal(np.concatenate([i for _, i in seen])[4], clips[4].real(3))


def test_batches_do_not_change_the_figures(data: HeldOut) -> None:
    clips = windows(data, 8, 5, moving=True)
    assert rollout(MeanFrame(), clips, batch=5) == rollout(MeanFrame(), clips, batch=2)


def test_gain_is_measured_at_exactly_the_tick(data: HeldOut) -> None:
    """A dreamer that stops after eight ticks is perfect at 8 and at copy-seed's level of tick 8 after."""
    clips = windows(data, 16, 4, moving=True)
    found = rollout(Frozen(Perfect(), 8), clips, ticks=(8, 9, 16))
    assert found["per_clip"]["8"]["psnr"] == [100] * 4
    assert max(found["per_clip"]["9"]["psnr"]) < 100 or max(found["per_clip"]["16"]["psnr"]) < 100


def test_one_tick_of_persistence_gains_nothing(data: HeldOut) -> None:
    clips = windows(data, 16, 4, moving=True)
    assert one_tick(CopySeed(), clips)["gain"]["mean"] == 0
    perfect = one_tick(Perfect(), clips)
    assert perfect["psnr"]["mean"] == 100 and perfect["gain"]["low"] > 0
    assert perfect["ticks"] == sum(int(clip_moved(c).sum()) for c in clips)


def test_one_tick_without_context_predictions_steps_once(data: HeldOut) -> None:
    class Stepper:
        name = "stepper"

        def __init__(self) -> None:
            self._inner = Perfect()
            self.reset, self.step = self._inner.reset, self._inner.step

    found = one_tick(Stepper(), windows(data, 8, 3, moving=True))
    assert found["all"]["ticks"] == 3 and found["psnr"]["mean"] == 100


BROKEN: list[tuple[str, Callable[[], Dreamer]]] = [
    ("flat", lambda: Blurred(Perfect(), radius=12)),
    ("frozen", lambda: Frozen(Perfect())),
    ("frozen", lambda: CopySeed()),
    ("frozen", lambda: MeanFrame()),
    ("noise", lambda: Noise()),
    ("one_texture", lambda: OneTexture(patch=8)),
]


@pytest.mark.parametrize(("kind", "make"), BROKEN, ids=lambda v: v if isinstance(v, str) else "")
def test_each_broken_dreamer_is_caught_for_its_own_reason(
    data: HeldOut, kind: str, make: Callable[[], Dreamer]
) -> None:
    found = collapse(make(), data, count=6, ticks=120)
    assert found.summary["collapsed"] == 6
    assert found.summary["kinds"][kind] == 6
    assert found.ends.shape == (6, HEIGHT, WIDTH, 3)


def test_a_dreamer_that_shows_the_real_game_is_not_blamed(data: HeldOut) -> None:
    assert collapse(Perfect(), data, count=6, ticks=120).summary["collapsed"] == 0


def test_real_recordings_are_seldom_blamed(data: HeldOut) -> None:
    found = false_alarms(data, real_means(data))
    assert found["look_around"]["count"] >= 3 and found["look_around"]["blamed"] == 0


def test_wandering_is_deterministic_and_ends_with_a_look_around() -> None:
    plan = wander(NAMES, 300, seed=4)
    np.testing.assert_array_equal(plan, wander(NAMES, 300, seed=4))
    assert len(plan) == 300 and (plan != wander(NAMES, 300, seed=5)).any()
    assert len(set(plan[-LOOK_AROUND:])) == 1 and plan[-1] in (3, 4)
    assert (plan[:-LOOK_AROUND] == 1).mean() > 0.1


def test_mirrored_actions_undo() -> None:
    assert mirrored(NAMES, np.array([1, 1, 3])).tolist() == [4, 2, 2]


def test_control_tells_the_obedient_from_the_deaf(data: HeldOut) -> None:
    clips = windows(data, 8, 6, moving=True)
    good, bad = control(Perfect(), clips, NAMES), control(Deaf(), clips, NAMES)
    assert good["opposite"]["mean"] == good["correct"]["mean"] == 1
    assert good["median_shift"]["left"] > 4 and good["first_tick"] == {"1": 6}
    assert bad["opposite"]["mean"] == 0 and bad["first_tick"] == {"0": 6}
    assert real_turns(data, 20)["correct"]["mean"] == 1


def test_control_needs_turns(data: HeldOut) -> None:
    with pytest.raises(DataError, match="left and right"):
        control(Perfect(), windows(data, 8, 2, moving=True), ("jump", "duck"))


def test_true_actions_beat_random_ones_only_if_they_are_heard(data: HeldOut) -> None:
    clips = windows(data, 8, 12, moving=True)
    assert delta_psnr(Perfect(), clips, len(NAMES))["delta"]["low"] > 0
    assert delta_psnr(Deaf(), clips, len(NAMES))["delta"]["mean"] == 0


@pytest.mark.parametrize(("how", "says"), [("nan", "NaN"), ("float", "float32"), ("size", "shape")])
def test_a_broken_frame_is_an_error_not_a_score(data: HeldOut, how: str, says: str) -> None:
    clips: list[Clip] = windows(data, 4, 2, moving=False)
    with pytest.raises(WorldError, match=says):
        list(dream(Broken(how), clips))


def test_the_probe_follows_a_good_dream_and_loses_a_deaf_one(root: Path, data: HeldOut) -> None:
    probe = train_probe(root, frames=600, steps=90, split="val")
    clips = windows(data, 32, 6, moving=True)
    good, bad = path_error(Perfect(), probe, clips), path_error(Deaf(), probe, clips)
    assert good["32"]["degrees"] == good["32"]["real"]["degrees"]
    assert good["32"]["degrees"]["mean"] < 25 < bad["32"]["degrees"]["mean"]


def test_a_classifier_that_has_learnt_nothing_is_called_too_weak(data: HeldOut) -> None:
    found = real_or_dream(Noise(), data, count=4, steps=2, lengths=(40,))["40"]
    assert found["able"] is False and found["blurred"]["mean"] < 0.9
    text = summary_markdown(HEAD | {"real_or_dream": {"40": found}})
    assert "The judge is too weak at 1.6 s" in text


@pytest.mark.slow
def test_a_classifier_tells_a_slight_blur_and_a_halting_picture_and_no_perfect_dream(data: HeldOut) -> None:
    """The blur is one of 3 x 3 pixels: what a classifier misses that sees every other pixel."""
    found = real_or_dream(Perfect(), data, count=12, steps=120, lengths=(40,))["40"]
    assert found["blurred"]["mean"] >= 0.9 and found["halting"]["mean"] >= 0.9 and found["able"]
    assert found["accuracy"]["mean"] < 0.75 and found["check"]["mean"] < 0.75
    text = summary_markdown(HEAD | {"real_or_dream": {"40": found}})
    assert "too weak" not in text and "| 1.6 s of real clips, blurred by 3 x 3 | 100 % (" in text


def test_a_clip_without_a_pose_has_no_path(root: Path, data: HeldOut) -> None:
    clip = replace(windows(data, 8, 1, moving=True)[0], pose=None)
    with pytest.raises(DataError, match="no pose"):
        path_error(Perfect(), train_probe(root, 40, steps=1, split="val"), [clip])


def test_real_or_dream_needs_two_episodes(data: HeldOut) -> None:
    with pytest.raises(DataError, match="two held-out episodes"):
        real_or_dream(Perfect(), HeldOut(data.names[:1], data.episodes[:1]))
