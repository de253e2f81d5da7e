"""Sources, walkers, collecting and episodes."""

from __future__ import annotations

import json
import math
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tiny import tiny_data
from world_model.data import collect as collecting
from world_model.data.collect import CollectConfig, collect, coverage_report, record_episode
from world_model.data.dataset import TRIED, FrameSampler, LatentDataset, Prefetcher, lively, load_split
from world_model.data.episodes import SPLITS, list_episodes, read_episode, write_episode
from world_model.data.gym_source import fit_picture
from world_model.data.policies import Walker
from world_model.data.sources import Observation, make_source
from world_model.types import Action, DataError, SourceError

ACTIONS = (Action("idle"), Action("forward", ("up",)), Action("left", ("left",)), Action("right", ("right",)))


class Corridor:
    """A stub game: one walks along a line between two walls."""

    name, fps, licence, phases, actions = "corridor", 25, "none", 5, ACTIONS

    def reset(self, seed: int) -> Observation:
        self._rng = np.random.default_rng(seed)
        self._x, self._heading, self._tick = float(self._rng.uniform(0, 300)), 0.0, 0
        return self._observe()

    def step(self, action: int) -> Observation:
        turn = {2: 0.1, 3: -0.1}.get(action, 0.0)
        self._heading += turn
        if action == 1:
            self._x = float(np.clip(self._x + 8 * np.cos(self._heading), 0, 300))
        self._tick += 1
        return self._observe()

    def close(self) -> None:
        pass

    def _observe(self) -> Observation:
        image = np.full((16, 32, 3), int(self._x) % 256, np.uint8)
        pose = np.array([self._x, 0.0, self._heading], np.float32)
        depth = np.full((4, 8), self._x, np.float16)
        return Observation(image, pose, phase=self._tick % self.phases, depth=depth)


def test_depth_travels_with_its_frame(tmp_path: Path) -> None:
    write_episode(tmp_path / "ep_0", record_episode(Corridor(), seed=5, ticks=20))
    episode = read_episode(tmp_path / "ep_0")
    assert episode.depth is not None and episode.pose is not None
    np.testing.assert_array_equal(episode.depth[:, 0, 0], episode.pose[:, 0].astype(np.float16))


def test_recorded_alignment_and_phase() -> None:
    episode = record_episode(Corridor(), seed=5, ticks=60)
    replay = Corridor()
    assert np.array_equal(replay.reset(5).image, episode.frames[0])
    for t in range(60):
        assert episode.phases[t] == t % 5
        assert np.array_equal(replay.step(int(episode.actions[t])).image, episode.frames[t + 1])


def test_walker_is_deterministic_and_does_not_stare_at_walls() -> None:
    runs = [record_episode(Corridor(), seed=1, ticks=400).actions.tolist() for _ in range(2)]
    assert runs[0] == runs[1]
    episode = record_episode(Corridor(), seed=1, ticks=1000)
    assert episode.pose is not None
    moved = np.abs(np.diff(episode.pose[:, 0])) + 80 * np.abs(np.diff(episode.pose[:, 2]))
    assert (moved > 1).mean() > 0.5
    assert set(np.unique(episode.actions)) == set(range(len(ACTIONS)))


def test_walker_without_pose_works() -> None:
    walker = Walker(ACTIONS, seed=0)
    image = np.zeros((4, 4, 3), np.uint8)
    assert all(0 <= walker.act(Observation(image)) < len(ACTIONS) for _ in range(200))


def test_collect_resumes_and_holds_out_by_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collecting, "make_source", lambda _: Corridor())
    monkeypatch.setattr(collecting, "ProcessPoolExecutor", InProcess)
    config = CollectConfig("corridor", frames=90, out=tmp_path, episode_ticks=30, val_share=0.34)
    report = collect(config)
    train, val = list_episodes(tmp_path, "train"), list_episodes(tmp_path, "val")
    assert len(train) == 3 and len(val) == 2
    assert {read_episode(f).header["seed"] >= SPLITS["val"] for f in val} == {True}
    assert report["frames"] == 5 * 31 and json.loads((tmp_path / "report.json").read_text()) == report
    kept = train[0].stat().st_mtime_ns
    frames = (train[1] / "frames.npy").read_bytes()
    for file in train[1].iterdir():
        file.unlink()
    train[1].rmdir()
    collect(config)
    assert train[0].stat().st_mtime_ns == kept, "a finished episode must not be collected again"
    assert (train[1] / "frames.npy").read_bytes() == frames


class InProcess:
    """Stands in for the process pool."""

    def __init__(self, *_: object, **__: object) -> None:
        collecting._source = None

    def __enter__(self) -> InProcess:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, call, job):  # type: ignore[no-untyped-def]
        future: Future[None] = Future()
        future.set_result(call(job))
        return future


def test_a_game_that_breaks_off_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Breaking(InProcess):
        def submit(self, call, job):  # type: ignore[no-untyped-def]
            future: Future[None] = Future()
            if job.split == "train":
                future.set_result(call(job))
            else:
                future.set_exception(BrokenProcessPool("terminated abruptly"))
            return future

    monkeypatch.setattr(collecting, "make_source", lambda _: Corridor())
    monkeypatch.setattr(collecting, "ProcessPoolExecutor", Breaking)
    with pytest.raises(SourceError, match="run the same command again"):
        collect(CollectConfig("corridor", frames=60, out=tmp_path, episode_ticks=30))
    assert len(list_episodes(tmp_path, "train")) == 2


def test_collect_into_a_file_or_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collecting, "make_source", lambda _: Corridor())
    blocker = tmp_path / "file"
    blocker.write_text("")
    with pytest.raises(DataError, match="choose another --out"):
        collect(CollectConfig("corridor", 30, blocker / "out"))
    with pytest.raises(DataError, match="fewer --frames"):
        collect(CollectConfig("corridor", 10**12, tmp_path / "out", episode_ticks=10**9))


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    episode = record_episode(Corridor(), 0, 10)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(DataError, match="No space left"):
        write_episode(tmp_path / "ep_0", episode)
    assert list(tmp_path.iterdir()) == []


def test_damaged_episodes_are_named(tmp_path: Path) -> None:
    root = tiny_data(tmp_path, episodes=1)
    folder = list_episodes(root, "train")[0]
    (folder / "actions.npy").write_bytes(b"not an array")
    with pytest.raises(DataError, match=r"actions\.npy is damaged"):
        read_episode(folder)
    (folder / "header.json").write_text('{"schema": 99}')
    with pytest.raises(DataError, match="newer"):
        read_episode(folder)
    with pytest.raises(DataError, match="holds no episodes"):
        list_episodes(root, "test")


def test_frame_crops_keep_to_the_grid(tmp_path: Path) -> None:
    episodes = load_split(tiny_data(tmp_path), "train")
    crops = FrameSampler(episodes)(np.random.default_rng(0), 8, (16, 32))
    assert crops.shape == (8, 16, 32, 3)


def test_lively_is_what_lies_in_boxes_and_the_status_bar(tmp_path: Path) -> None:
    episode = load_split(tiny_data(tmp_path), "train")[0]
    assert not lively(episode, 3).any()
    labels = np.zeros((len(episode.frames), 2, 5), np.int16)
    labels[3, 0] = [1, -2, 4, 6, 8]
    mask = lively(replace(episode, labels=labels), 3, view=28)
    wanted = np.zeros(mask.shape, bool)
    wanted[4:12, :4] = wanted[28:] = True
    np.testing.assert_array_equal(mask, wanted)
    frames, masks = FrameSampler([replace(episode, labels=np.repeat(labels[3:4], len(labels), 0))]).lively(
        np.random.default_rng(0), 16, (16, 32), 28
    )
    assert frames.shape == (16, 16, 32, 3) and set(masks.sum((1, 2)).tolist()) <= {0, 32, 4 * 32}


def test_every_second_clip_is_where_things_are(tmp_path: Path) -> None:
    episode = load_split(tiny_data(tmp_path), "train")[0]
    ticks, count = 4, len(episode.frames)
    labels = np.zeros((count, 2, 5), np.int16)
    labels[count // 2 :, 0] = [1, 0, 0, 6, 8]
    latents = [np.zeros((count, 4, 2, 4), np.float16)]

    def late(labels: np.ndarray | None) -> float:
        data = LatentDataset([replace(episode, labels=labels)], latents, (0.0, 0.0), 2.0)
        places = data.places(np.random.default_rng(0), 400, ticks)
        return float(np.mean([start + ticks // 2 >= count // 2 for _, start in places]))

    assert late(labels) == pytest.approx(0.5 / 2 + (1 - 0.5**TRIED) / 2, abs=0.08)
    assert late(None) == pytest.approx(0.5, abs=0.08)


def test_clips_are_aligned_and_keyframes_come_from_the_past(tmp_path: Path) -> None:
    episodes = load_split(tiny_data(tmp_path), "train")
    # Latents that tell which episode and tick they are.
    latents = [
        np.stack([np.full((4, 2, 4), 0.1 * i + t / 1000) for t in range(len(e.frames))]).astype(np.float16)
        for i, e in enumerate(episodes)
    ]
    data = LatentDataset(episodes, latents, (0.0, 0.0), 2.0)
    clips = data.clips([(1, 7), (2, 20)], 10, 3, np.random.default_rng(0))
    assert clips.z.shape == (2, 11, 4, 2, 4)
    np.testing.assert_array_equal(clips.act[0].numpy(), episodes[1].actions[7:17])
    np.testing.assert_array_equal(clips.phase[1].numpy(), episodes[2].phases[20:30])
    assert clips.pose is not None and episodes[1].pose is not None
    np.testing.assert_allclose(clips.pose[0, :, 0].numpy(), episodes[1].pose[7:18, 0] / 2, rtol=1e-6)
    latest = clips.z[:, 0, 0, 0, 0] + 1e-3
    assert bool((clips.past[:, :, 0, 0, 0] <= latest[:, None]).all())


def test_prefetcher_gives_the_same_batches_after_a_resume() -> None:
    def take(first: int, count: int) -> list[int]:
        batches = Prefetcher(lambda rng: int(rng.integers(1 << 30)), seed=3, first=first)
        items = [item for item, _ in zip(batches, range(count), strict=False)]
        batches.close()
        return items

    assert take(0, 6)[4:] == take(4, 2)


def test_pictures_are_fitted_to_16_by_10() -> None:
    image = np.zeros((400, 600, 3), np.uint8)
    image[:, :300] = 255
    fitted = fit_picture(image)
    assert fitted.shape == (160, 256, 3)
    assert fitted[:, :127].min() == 255 and fitted[:, 129:].max() == 0


def test_unknown_source_lists_what_there_is() -> None:
    with pytest.raises(SourceError, match="rooms"):
        make_source("castle")


def test_missing_game_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "vizdoom", None)
    with pytest.raises(SourceError, match=r"pip install .*doom"):
        make_source("rooms")


@pytest.mark.doom
def test_a_folder_that_the_game_cannot_write_to_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("vizdoom")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "_vizdoom").write_text("in the way")
    with pytest.raises(SourceError, match="start from a folder that can be written to"):
        make_source("rooms")


@pytest.mark.doom
def test_rooms_is_deterministic_and_runs_at_25_hz() -> None:
    pytest.importorskip("vizdoom")
    actions = [1] * 10 + [4] * 10 + [6] * 10
    runs = []
    for _ in range(2):
        source = make_source("rooms")
        first = source.reset(7)
        assert first.image.shape == (160, 256, 3) and first.image.dtype == np.uint8
        runs.append([source.step(a) for a in actions])
        source.close()
    for a, b in zip(*runs, strict=True):
        assert np.array_equal(a.image, b.image) and np.array_equal(a.pose, b.pose)
    assert [o.phase for o in runs[0][:6]] == [1, 2, 3, 4, 0, 1]
    turned = math.remainder(runs[0][19].pose[2] - runs[0][10].pose[2], math.tau)
    assert turned < 0, "right must turn clockwise"


@pytest.mark.doom
def test_rooms_has_no_item_that_ends_the_game() -> None:
    pytest.importorskip("vizdoom")
    source = make_source("rooms")
    source.reset(0)
    objects = source._game.get_state().objects if source._game.is_objects_info_enabled() else []  # type: ignore[attr-defined]
    assert all(o.name == "DoomPlayer" for o in objects)
    source.close()


@pytest.mark.slow
def test_car_racing_is_a_source() -> None:
    pytest.importorskip("gymnasium")
    pytest.importorskip("Box2D")
    source = make_source("car_racing")
    first = source.reset(0)
    assert first.image.shape == (160, 256, 3)
    moved = [source.step(3) for _ in range(40)][-1]
    assert not np.array_equal(first.image, moved.image)
    with pytest.raises(ValueError, match="out of range"):
        source.step(9)
    source.close()


def test_coverage_counts_blocked_ticks(tmp_path: Path) -> None:
    source = Corridor()
    source.reset(0)
    episode = record_episode(source, 0, 200)
    write_episode(tmp_path / "ep_0", episode)
    report = coverage_report([tmp_path / "ep_0"])
    assert report["frames"] == 201 and 0 <= report["blocked_share"] < 0.6
    assert abs(sum(report["actions"].values()) - 1) < 0.01
