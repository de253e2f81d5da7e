"""Rollouts for others: what is written is what was dreamed, and only what was verified."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from game.episode_log import EpisodeLog
from game.export import export
from game.keys import Command, Input
from game.players import Listed, RandomPlayer
from game.recorder import LOG_NAME, SessionLog, record_rollout
from game.session import Session
from game.source_world import SourceWorld
from stub_source import StubSource
from stub_world import ACTIONS, StubWorld, hold, press
from tiny import tiny_data
from world_model.data.episodes import Episode, read_episode, write_episode
from world_model.types import DataError, ReverieError


def _load(name: str) -> StubWorld:
    assert name == "stub"
    return StubWorld()


def _open(path: Path) -> list[dict[str, np.ndarray]]:
    found = []
    for file in sorted(path.glob("*.npz")):
        with np.load(file, allow_pickle=False) as arrays:
            found.append(dict(arrays))
    return found


def _session(folder: Path) -> Path:
    """Two starts; in the first, 12 ticks are taken back and 5 others follow."""
    world = StubWorld()
    log = SessionLog(folder, world)
    session = Session(world, logs=[log])
    session.begin(seed=3)
    for tick in range(40):
        session.advance(Input(tick % 7))
    for _ in range(12):
        session.advance(hold(Command.REWIND))
    for _ in range(5):
        session.advance(Input(4))
    session.advance(press(Command.RESTART))
    for _ in range(9):
        session.advance(Input(1))
    log.close()
    return folder


def _dreamed(seed: int, actions: list[int]) -> np.ndarray:
    world = StubWorld()
    return np.stack([world.reset(seed).image, *(world.step(a).image for a in actions)])


def test_each_start_of_a_session_is_an_episode_without_what_was_taken_back(tmp_path: Path) -> None:
    text = export(_session(tmp_path / "kept"), "npz", None, _load)
    first, second = _open(tmp_path / "kept-npz")
    acts = [*(t % 7 for t in range(28)), *[4] * 5]
    assert first["act"].tolist() == acts
    np.testing.assert_array_equal(first["obs"], _dreamed(3, acts))
    np.testing.assert_array_equal(second["obs"], _dreamed(4, second["act"].tolist()))
    assert len(second["act"]) == 10
    assert first["action_names"].tolist() == [a.name for a in ACTIONS]
    assert (first["fps"], first["truncated"].sum(), first["truncated"][-1]) == (25, 1, True)
    assert not first["terminated"].any()
    header = json.loads(str(first["header"]))
    assert (header["source"], header["seed"], header["licence"]) == ("dream:stub", 3, "MIT")
    assert "phase" not in first  # a dream does not tell its clock
    assert text == f"2 episodes of 43 ticks written to {tmp_path / 'kept-npz'}"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["kept", "kept-npz"]


def test_a_rollout_is_checked_against_its_log(tmp_path: Path) -> None:
    kept = record_rollout(StubWorld(), RandomPlayer(ACTIONS, 3), 30, tmp_path / "kept", 5)
    export(kept, "npz", tmp_path / "out", _load)
    (episode,) = _open(tmp_path / "out")
    np.testing.assert_array_equal(episode["obs"], np.load(kept / "frames.npy"))
    frames = np.load(kept / "frames.npy")
    frames[17, 3, 3] ^= 1
    np.save(kept / "frames.npy", frames)
    with pytest.raises(DataError, match="tick 17 is not what its log says"):
        export(kept, "npz", tmp_path / "again", _load)
    assert not (tmp_path / "again").exists()


def test_a_session_on_a_real_game_has_its_poses_and_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("game.twin.make_source", lambda name, sound: StubSource(60))
    world = SourceWorld(StubSource(60))
    logs = [SessionLog(tmp_path / "kept", world, world.origin), EpisodeLog(tmp_path / "data", world)]
    session = Session(world, Listed("all", [t % 7 for t in range(120)]), logs)
    session.begin(seed=3)
    for _ in range(120):
        session.advance(Input())
    for log in logs:
        log.close()
    export(tmp_path / "kept", "npz", tmp_path / "played", _load)
    export(tmp_path / "data" / "train", "npz", tmp_path / "episodes", _load)
    played, episodes = _open(tmp_path / "played"), _open(tmp_path / "episodes")
    assert len(played) == len(episodes) == 2
    for one, other in zip(played, episodes, strict=True):
        for name in ("obs", "act", "reward", "terminated", "truncated", "pose", "phase"):
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)
    assert [bool(e["terminated"][-1]) for e in played] == [True, False]


def test_what_does_not_replay_is_not_exported(tmp_path: Path) -> None:
    kept = _session(tmp_path / "kept")
    with pytest.raises(DataError, match=r"nothing is exported.*other weights"):
        export(kept, "npz", None, lambda name: _Other())
    assert not (tmp_path / "kept-npz").exists()


class _Other(StubWorld):
    """Other weights, other pictures."""

    def __init__(self) -> None:
        super().__init__(weights="bb" * 32)

    def reset(self, seed: int = 0, scene: str | None = None, context: object = None):  # type: ignore[no-untyped-def]
        return super().reset(seed + 1, scene)


def test_of_an_altered_recording_the_part_before_is_exported_and_said(tmp_path: Path) -> None:
    kept = _session(tmp_path / "kept")
    lines = (kept / LOG_NAME).read_bytes().splitlines(keepends=True)
    lines[20] = lines[20].replace(b'"tick"', b'"tock"')
    (kept / LOG_NAME).write_bytes(b"".join(lines))
    assert "only the 18 ticks before this" in export(kept, "npz", None, _load)
    assert len(_open(tmp_path / "kept-npz")[0]["act"]) == 18


def test_a_recording_that_was_cut_off_says_so(tmp_path: Path) -> None:
    kept = _session(tmp_path / "kept")
    whole = (kept / LOG_NAME).read_bytes()
    (kept / LOG_NAME).write_bytes(whole[:-5])
    assert "cut off" in export(kept, "npz", None, _load)


def test_a_twin_is_refused(tmp_path: Path) -> None:
    world = StubWorld()
    header = {"backend": "twin-cpu", "source": "stub", "dream": "stub"}
    log = SessionLog(tmp_path / "kept", world, header)
    log.close()
    with pytest.raises(DataError, match="two games in one"):
        export(tmp_path / "kept", "npz", None, _load)


def test_mistakes_are_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="npz, lerobot, minari"):
        export(tmp_path, "zip", None, _load)
    with pytest.raises(DataError, match="neither a recording"):
        export(tmp_path, "npz", tmp_path / "out", _load)
    with pytest.raises(DataError, match="exists already"):
        export(tmp_path, "npz", tmp_path, _load)
    world = StubWorld()
    log = SessionLog(tmp_path / "kept", world)
    log.start(0, None, (), world.reset())
    log.close()
    with pytest.raises(DataError, match="nothing was played"):
        export(tmp_path / "kept", "npz", None, _load)


@pytest.mark.parametrize(("kind", "module"), [("lerobot", "lerobot.datasets"), ("minari", "minari")])
def test_a_missing_library_is_named_with_its_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, f"{module}.lerobot_dataset", None)
    with pytest.raises(ReverieError, match=rf"pip install 'reverie\[{kind}\]'"):
        export(tmp_path, kind, None, _load)


def _real_session(tmp_path: Path) -> Path:
    world = SourceWorld(StubSource(60))
    log = EpisodeLog(tmp_path / "data", world)
    session = Session(world, Listed("all", [t % 7 for t in range(120)]), [log])
    session.begin(seed=3)
    for _ in range(120):
        session.advance(Input())
    log.close()
    return tmp_path / "data" / "train"


def _sounding(tmp_path: Path) -> Episode:
    """An episode with sound, alone in a data set."""
    tiny_data(tmp_path / "silent", episodes=1)
    episode = read_episode(tmp_path / "silent" / "train" / "ep_0000000000")
    sound = np.random.default_rng(0).integers(-9000, 9000, (len(episode), 20, 2)).astype(np.int16)
    loud = replace(episode, sound=sound)
    write_episode(tmp_path / "data" / "train" / "ep_0000000000", loud)
    return loud


def test_minari_opens_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    minari = pytest.importorskip("minari")
    pytest.importorskip("h5py")
    export(_real_session(tmp_path), "npz", tmp_path / "plain", _load)
    export(tmp_path / "data" / "train", "minari", tmp_path / "played-v0", _load)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    data = minari.load_dataset("played-v0")
    assert (data.total_episodes, data.total_steps) == (2, 119)
    for episode, plain in zip(data, _open(tmp_path / "plain"), strict=True):
        np.testing.assert_array_equal(episode.observations, plain["obs"])
        np.testing.assert_array_equal(episode.actions, plain["act"])
        np.testing.assert_array_equal(episode.rewards, plain["reward"])
        np.testing.assert_array_equal(episode.terminations, plain["terminated"])
        np.testing.assert_array_equal(episode.truncations, plain["truncated"])
        np.testing.assert_array_equal(episode.infos["pose"], plain["pose"])


def test_minari_keeps_the_sound_beside_the_picture_it_led_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    minari = pytest.importorskip("minari")
    pytest.importorskip("h5py")
    episode = _sounding(tmp_path)
    export(tmp_path / "data" / "train", "minari", tmp_path / "loud-v0", _load)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    infos = next(iter(minari.load_dataset("loud-v0"))).infos
    np.testing.assert_array_equal(infos["sound"][1:], episode.sound)
    assert not infos["sound"][0].any()


@pytest.mark.filterwarnings("ignore")
def test_lerobot_keeps_the_sound_of_each_tick(tmp_path: Path) -> None:
    module = pytest.importorskip("lerobot.datasets.lerobot_dataset")
    episode = _sounding(tmp_path)
    export(tmp_path / "data" / "train", "lerobot", tmp_path / "loud", _load)
    data = module.LeRobotDataset("reverie/loud", root=tmp_path / "loud")
    assert episode.sound is not None
    for t in (0, len(episode) - 1):
        np.testing.assert_array_equal(data[t]["next.sound"].numpy(), episode.sound[t])


@pytest.mark.filterwarnings("ignore")
def test_lerobot_opens_what_was_written(tmp_path: Path) -> None:
    module = pytest.importorskip("lerobot.datasets.lerobot_dataset")
    export(_real_session(tmp_path), "npz", tmp_path / "plain", _load)
    export(tmp_path / "data" / "train", "lerobot", tmp_path / "played", _load)
    data = module.LeRobotDataset("reverie/played", root=tmp_path / "played")
    assert (data.num_episodes, data.num_frames, data.fps) == (2, 119, 25)
    rows = [(plain, t) for plain in _open(tmp_path / "plain") for t in range(len(plain["act"]))]
    for row, (plain, t) in zip(data, rows, strict=True):
        picture = (row["observation.image"].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
        np.testing.assert_array_equal(picture, plain["obs"][t])
        assert row["action"].item() == plain["act"][t]
        assert row["next.reward"].item() == plain["reward"][t]
        assert bool(row["next.done"]) == (t == len(plain["act"]) - 1)
        np.testing.assert_array_equal(row["observation.state"].numpy(), plain["pose"][t])
