"""Evaluation: broken dreamers are caught, a perfect one is not, broken input is never a better score."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from world_model.data.episodes import Episode, write_episode
from world_model.data.sources import Observation
from world_model.evaluation.baselines import Blurred, CopySeed, Frozen, MeanFrame, Noise, OneTexture
from world_model.evaluation.collapse import collapse, false_alarms, real_means
from world_model.evaluation.compare import ablate, compare, comparison_markdown
from world_model.evaluation.control import control, delta_psnr, real_turns
from world_model.evaluation.probe import path_error, train_probe
from world_model.evaluation.protocol import Clip, Dreamer, Images, Ints, dream
from world_model.evaluation.realness import real_or_dream
from world_model.evaluation.report import Plan, evaluate
from world_model.evaluation.revisit import there_and_back, turn, turn_clips
from world_model.evaluation.rollout import one_tick, rollout
from world_model.evaluation.wander import LOOK_AROUND, mirrored, wander
from world_model.evaluation.windows import CONTEXT, HeldOut, clip_moved, held_out, moved, windows
from world_model.types import Action, DataError, WorldError

HEIGHT, WIDTH = 40, 64
NAMES = ("idle", "forward", "back", "left", "right", "forward_left", "forward_right")
TURN = {3: 2, 4: -2, 5: 2, 6: -2}
"""Columns of the panorama by which an action moves the picture to the right."""
ROUND = 160
"""Columns all around: 80 ticks of left."""


def panorama() -> NDArray[np.uint8]:
    """All that there is to see: eight coloured walls with texture, (HEIGHT, ROUND, 3)."""
    rng = np.random.default_rng(0)
    walls = np.kron(rng.integers(30, 226, (2, 8, 3)), np.ones((HEIGHT // 2, ROUND // 8, 1)))
    return np.clip(walls + rng.normal(0, 12, walls.shape), 0, 255).astype(np.uint8)


SEEN = panorama()


def view(angle: int, step: int) -> NDArray[np.uint8]:
    """The picture at a heading (columns, counter-clockwise) after `step` units forward, which light it."""
    columns = (np.arange(WIDTH) - angle) % ROUND
    return np.asarray(SEEN[:, columns] * (0.6 + 0.4 * (step % 24) / 24), np.uint8)


PLACES = {view(a, s).tobytes(): (a, s) for a in range(0, ROUND, 2) for s in range(0, 24, 2)}


def apply(angle: int, step: int, action: int) -> tuple[int, int]:
    walk = 2 if action in (1, 5, 6) else -2 if action == 2 else 0
    return angle + TURN.get(action, 0), step + walk


class Perfect:
    """Plays the toy game itself: finds out where it is from the last context frame."""

    name = "perfect"

    def reset(self, obs: NDArray[np.uint8], act: Ints, phase: Ints) -> Images:
        self._at = [PLACES[frame.tobytes()] for frame in obs[:, -1]]
        return self._show()

    def step(self, act: Ints) -> Images:
        self._at = [apply(*at, int(a)) for at, a in zip(self._at, act, strict=True)]
        return self._show()

    def context_predictions(self, obs: NDArray[np.uint8], act: Ints, phase: Ints) -> NDArray[np.uint8]:
        return obs[:, 1:].copy()

    def _show(self) -> Images:
        return np.stack([view(*at) for at in self._at])


class Deaf(Perfect):
    """Hears no action: always turns left."""

    name = "deaf"

    def step(self, act: Ints) -> Images:
        return super().step(np.full_like(act, 3))


class ToySource:
    name, fps, licence, phases = "toy", 25, "none", 1
    actions = tuple(Action(name) for name in NAMES)

    def reset(self, seed: int) -> Observation:
        self._at = (seed % 80 * 2, 0)
        return self._see()

    def step(self, action: int) -> Observation:
        self._at = apply(*self._at, action)
        return self._see()

    def close(self) -> None: ...

    def _see(self) -> Observation:
        angle, step = self._at
        return Observation(view(angle, step), np.array([step, 0, 2 * np.pi * angle / ROUND], np.float32))


def toy_episode(seed: int, ticks: int = 200, still: bool = False) -> Episode:
    rng = np.random.default_rng(seed)
    actions = np.repeat(rng.choice([1, 2, 3, 4, 5, 6], ticks // 5), 5).astype(np.int16)
    actions[:90] = 3  # a look around, which the rule's false alarms are counted on
    if still:
        actions[:] = 0
    states = [(seed * 10 % ROUND, 0)]
    for action in actions:
        states.append(apply(*states[-1], int(action)))
    return Episode(
        header={"source": "toy", "actions": list(NAMES), "fps": 25, "seed": seed},
        frames=np.stack([view(*s) for s in states]),
        actions=actions,
        phases=(np.arange(ticks) % 5).astype(np.uint8),
        pose=np.array([(s, 0, 2 * np.pi * a / ROUND) for a, s in states], np.float32),
        sound=None,
        rewards=np.zeros(ticks, np.float32),
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    for seed in (1, 2, 3):
        write_episode(folder / "val" / f"ep_{seed:03d}", toy_episode(seed))
    return folder


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


def test_too_short_episodes_are_an_error(data: HeldOut) -> None:
    with pytest.raises(DataError, match="collect longer"):
        windows(data, 1000, 4, moving=False)


def test_copy_seed_gains_nothing_and_a_perfect_dreamer_everything(data: HeldOut) -> None:
    clips = windows(data, 40, 6, moving=True)
    copy = rollout(CopySeed(), clips)
    perfect = rollout(Perfect(), clips)
    assert copy["ticks"]["8"]["gain"] == {"mean": 0, "low": 0, "high": 0, "n": 6}
    assert perfect["ticks"]["32"]["psnr"]["mean"] == 100
    assert perfect["ticks"]["32"]["gain"]["low"] > 5
    assert perfect["ticks"]["8"]["laplacian_ratio"]["mean"] == 1
    assert list(perfect["ticks"]) == ["1", "4", "8", "16", "32"]


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


def test_a_full_turn_comes_back(data: HeldOut) -> None:
    clips = turn_clips(ToySource(), 3)
    assert clips[0].ticks == 80
    found = turn(Perfect(), clips)
    assert found["psnr"]["mean"] == found["closure"]["mean"] == found["half"]["mean"] == 100
    assert found["random"]["mean"] < 30
    assert turn(CopySeed(), clips)["half"]["mean"] < 30


def test_walks_there_and_back_end_where_they_began() -> None:
    clip = there_and_back(ToySource(), 1, 60)[0]
    assert clip.ticks == 120 and clip.pose is not None
    np.testing.assert_allclose(clip.pose[-1], clip.pose[CONTEXT - 1], atol=1e-5)


class Broken(Perfect):
    """Returns something that is no picture."""

    def __init__(self, how: str) -> None:
        self._how = how

    def _show(self) -> Any:
        images = super()._show()
        if self._how == "nan":
            return np.full(images.shape, np.nan, np.float32)
        return images.astype(np.float32) if self._how == "float" else images[:, :-1]


@pytest.mark.parametrize(("how", "says"), [("nan", "NaN"), ("float", "float32"), ("size", "shape")])
def test_a_broken_frame_is_an_error_not_a_score(data: HeldOut, how: str, says: str) -> None:
    clips: list[Clip] = windows(data, 4, 2, moving=False)
    with pytest.raises(WorldError, match=says):
        list(dream(Broken(how), clips))


TINY = Plan(
    windows=4,
    ticks=32,
    all_windows=2,
    long_windows=2,
    long_ticks=48,
    collapse_rollouts=3,
    collapse_ticks=90,
    starts=4,
    realness_clips=0,
    probe_windows=0,
)


def test_evaluate_writes_a_whole_and_repeatable_report(root: Path, tmp_path: Path) -> None:
    parts: list[str] = []
    result = evaluate(Perfect(), root, True, tmp_path, plan=TINY, progress=parts.append)
    assert json.loads((tmp_path / "eval.json").read_text()) == result
    text = (tmp_path / "eval.md").read_text()
    assert "| collapsed of 3 rollouts, 90 ticks | 0 | 0 | met |" in text and "missed" not in text
    names = {p.name.replace("ends.jpg", "ends.png") for p in tmp_path.iterdir()}
    assert names == {
        "eval.json",
        "eval.md",
        "ends.png",
        "strip_best.png",
        "strip_median.png",
        "strip_worst.png",
    }
    assert parts[0] == "one tick"
    assert evaluate(Perfect(), root, True, tmp_path, plan=TINY) == result


def test_evaluate_reports_a_broken_world_as_missed(root: Path, tmp_path: Path) -> None:
    evaluate(Noise(), root, True, tmp_path, plan=TINY)
    text = (tmp_path / "eval.md").read_text()
    assert "| collapsed of 3 rollouts, 90 ticks | 3 | 0 | missed |" in text


def test_a_comparison_is_paired_and_names_the_better(data: HeldOut) -> None:
    clips = windows(data, 16, 6, moving=True)
    perfect, copy = rollout(Perfect(), clips), rollout(CopySeed(), clips)
    found = compare({"rollout": perfect}, {"rollout": copy})["rollout"]["16"]
    assert found["better"] == "a" and found["low"] > 0 and found["a_ahead"] == 1
    assert compare({"rollout": copy}, {"rollout": perfect})["rollout"]["16"]["better"] == "b"
    same = compare({"rollout": copy}, {"rollout": copy})
    assert same["rollout"]["16"]["better"] == "undecided"
    assert "| 16 | +0.00" in comparison_markdown(same, "old", "new")


def test_a_comparison_of_different_windows_is_an_error(data: HeldOut) -> None:
    found = [rollout(CopySeed(), windows(data, 8, 4, moving=True, seed=s)) for s in (0, 1)]
    with pytest.raises(DataError, match="different windows"):
        compare({"rollout": found[0]}, {"rollout": found[1]})


def test_an_ablation_shows_what_a_part_is_worth(data: HeldOut) -> None:
    found = ablate(Perfect(), {"hearing": Deaf(), "nothing": Perfect()}, windows(data, 16, 6, moving=True))
    assert found["hearing"]["16"]["better"] == "a" and found["nothing"]["16"]["mean"] == 0


def test_the_probe_follows_a_good_dream_and_loses_a_deaf_one(root: Path, data: HeldOut) -> None:
    probe = train_probe(root, frames=600, steps=90, split="val")
    clips = windows(data, 32, 6, moving=True)
    good, bad = path_error(Perfect(), probe, clips), path_error(Deaf(), probe, clips)
    assert good["32"]["degrees"] == good["32"]["real"]["degrees"]
    assert good["32"]["degrees"]["mean"] < 25 < bad["32"]["degrees"]["mean"]


def test_a_classifier_tells_noise_from_the_real_game(data: HeldOut) -> None:
    found = real_or_dream(Noise(), data, count=4, steps=12, lengths=(40,))["40"]
    assert found["accuracy"]["mean"] == 1


@pytest.mark.slow
def test_a_classifier_cannot_tell_a_perfect_dream(data: HeldOut) -> None:
    found = real_or_dream(Perfect(), data, count=24, steps=60, lengths=(40,))["40"]
    assert found["accuracy"]["mean"] < 0.75 and found["check"]["mean"] < 0.75


def test_real_or_dream_needs_two_episodes(data: HeldOut) -> None:
    with pytest.raises(DataError, match="two held-out episodes"):
        real_or_dream(Perfect(), HeldOut(data.names[:1], data.episodes[:1]))
