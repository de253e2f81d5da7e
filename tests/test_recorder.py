"""Logs that replay, rollouts that read as episodes, and what happens when the disk or a file is bad."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import main
from game.keys import Command, Input
from game.players import RandomPlayer, Wanderer, player_for, read_script
from game.png import png_bytes
from game.recorder import LOG_NAME, SessionLog, open_frames, record_rollout
from game.replay import check_world, read_recording, replay, report, timeline
from game.session import Session
from stub_world import ACTIONS, StubWorld, hold, press
from world_model.data.episodes import read_episode
from world_model.types import DataError, Frame


def _session(folder: Path, ticks: int = 30) -> Session:
    """A session with a walk, a rewind, another way, a restart and some more."""
    world = StubWorld()
    log = SessionLog(folder, world)
    session = Session(world, RandomPlayer(ACTIONS, 1), [log])
    session.begin(seed=4)
    for _ in range(ticks):
        session.advance(Input())
    for _ in range(ticks // 3):
        session.advance(hold(Command.REWIND))
    for _ in range(ticks):
        session.advance(Input())
    session.advance(press(Command.RESTART))
    for _ in range(ticks):
        session.advance(Input())
    log.close()
    return session


def test_a_session_with_rewinds_and_restarts_replays(tmp_path: Path) -> None:
    session = _session(tmp_path / "rec", 300)
    world = StubWorld()
    compared, difference = replay(read_recording(tmp_path / "rec"), world)
    assert (compared, difference) == (901, None)
    assert world.snapshot().hash() == session.world.snapshot().hash()
    assert session.history is not None
    assert timeline(read_recording(tmp_path / "rec")) == (5, None, list(session.history.actions))


def test_every_prefix_replays(tmp_path: Path) -> None:
    _session(tmp_path / "rec", 6)
    whole = (tmp_path / "rec" / LOG_NAME).read_bytes()
    header = whole.index(b"\n") + 1
    cut = tmp_path / "cut.jsonl"
    for end in range(header, len(whole), 7):
        cut.write_bytes(whole[:end])
        recording = read_recording(cut)
        assert recording.altered is None
        assert recording.cut == (whole[end - 1 : end] != b"\n")
        compared, difference = replay(recording, StubWorld())
        assert difference is None
        assert compared == whole[:end].count(b'"tick"') - (
            recording.cut and b'"tick"' in whole[:end].split(b"\n")[-1]
        )


def _log(path: Path, *records: object) -> Path:
    """A log whose checks are right, whatever it says."""
    header = {"schema": 1, "world": "stub", "weights_sha256": "", "backend": "", "actions": ["a", "b"]}
    crc, lines = 0, []
    for record in (header, *records):
        payload = json.dumps(record).encode()
        crc = zlib.crc32(payload, crc)
        lines.append(b"%08x %s\n" % (crc, payload))
    path.write_bytes(b"".join(lines))
    return path


START = {"start": {"seed": 0, "scene": None, "actions": []}}


@pytest.mark.parametrize(
    ("records", "reason"),
    [
        ([START, {"tick": 1}], "action None does not fit"),
        ([START, {"tick": 1, "action": 99}], "action 99 does not fit"),
        ([START, {"tick": 2, "action": 0}], "tick 2 does not fit"),
        ([{"start": None}], "without a seed"),
        ([{"start": {"seed": 0, "scene": 5, "actions": []}}], "not a name"),
        ([{"start": {"seed": 0, "scene": None, "actions": [[1]]}}], "list of actions is broken"),
        ([START, {"rewind": "x"}], "rewind 'x' does not fit"),
        ([START, {"rewind": 1}], "rewind 1 does not fit"),
        ([{"tick": 1, "action": 0}], "before a start"),
    ],
)
def test_a_crafted_log_has_no_timeline(tmp_path: Path, records: list[object], reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        timeline(read_recording(_log(tmp_path / "crafted.jsonl", *records)))


def test_an_altered_log_has_no_timeline(tmp_path: Path) -> None:
    path = _log(tmp_path / "log.jsonl", START, {"tick": 1, "action": 1}, {"tick": 2, "action": 0})
    assert timeline(read_recording(path)) == (0, None, [1, 0])
    path.write_bytes(path.read_bytes().replace(b'"tick": 2', b'"tick": 3'))
    with pytest.raises(DataError, match="line 4: altered"):
        timeline(read_recording(path))


def test_a_recording_from_a_scene_needs_a_world_with_scenes(tmp_path: Path) -> None:
    log = SessionLog(tmp_path / "rec", StubWorld())
    session = Session(StubWorld(), logs=[log])
    session.begin(0, "yard")
    log.close()
    world = StubWorld()
    world.info = replace(world.info, scenes=())
    with pytest.raises(DataError, match="it begins in a scene, and stub has none"):
        check_world(read_recording(tmp_path / "rec"), world)


def test_a_rollout_that_is_stopped_says_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(done: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    def record(*given: Any, **_: Any) -> Path:
        return record_rollout(*given, progress=stop)

    monkeypatch.setattr(main, "_load_world", lambda name: StubWorld())
    monkeypatch.setattr("game.recorder.record_rollout", record)
    command = ["record", "--out", str(tmp_path / "out"), "--policy", "random"]
    result = CliRunner().invoke(main.app, command)
    assert result.exit_code == 130
    assert str(tmp_path / "out.partial") in result.output.replace("\n", "")
    assert "5 ticks replay exactly" in report(read_recording(tmp_path / "out.partial"), StubWorld())


def test_a_log_without_a_whole_line_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cut.jsonl"
    for text in (b"", b"12345678 {", b"not a recording at all\n", b"\x00" * 100):
        path.write_bytes(text)
        with pytest.raises(DataError):
            read_recording(path)
    with pytest.raises(DataError, match="no recording"):
        read_recording(tmp_path / "missing")


def test_every_altered_byte_is_found(tmp_path: Path) -> None:
    _session(tmp_path / "rec", 2)
    whole = bytearray((tmp_path / "rec" / LOG_NAME).read_bytes())
    path = tmp_path / "altered.jsonl"
    for at in range(0, len(whole), 5):
        changed = bytearray(whole)
        changed[at] ^= 1
        path.write_bytes(changed)
        try:
            recording = read_recording(path)
        except DataError:
            continue
        assert recording.altered is not None or recording.cut
        assert replay(recording, StubWorld())[1] is None


def test_a_lost_line_is_found(tmp_path: Path) -> None:
    _session(tmp_path / "rec", 5)
    path = tmp_path / "rec" / LOG_NAME
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:4] + lines[5:]))
    recording = read_recording(tmp_path / "rec")
    assert "line 5" in str(recording.altered)
    with pytest.raises(DataError, match="before it replay exactly"):
        report(recording, StubWorld())


def test_a_replay_says_where_and_why_it_differs(tmp_path: Path) -> None:
    _session(tmp_path / "rec")
    world = StubWorld(weights="cc" * 32)
    step = world.step

    def other(action: int) -> Frame:
        frame = step(action)
        if frame.info.tick == 9:
            frame.image[5, 5] += 1
        return frame

    world.step = other  # type: ignore[method-assign]
    with pytest.raises(DataError, match="the picture differs at tick 9; the reason may be other weights"):
        report(read_recording(tmp_path / "rec"), world)


def test_another_worlds_recording_is_refused(tmp_path: Path) -> None:
    _session(tmp_path / "rec", 3)
    world = StubWorld()
    world.actions = ACTIONS[:3]  # type: ignore[assignment]
    with pytest.raises(DataError, match="belongs to the world"):
        replay(read_recording(tmp_path / "rec"), world)


class FullDisk(io.BytesIO):
    def __init__(self, room: int) -> None:
        super().__init__()
        self.left = room

    def write(self, data: object) -> int:
        if self.left == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.left -= 1
        return super().write(data)  # type: ignore[arg-type]


@pytest.mark.parametrize("room", range(6))
def test_a_full_disk_stops_the_log_and_not_the_game(tmp_path: Path, room: int) -> None:
    world = StubWorld()
    log = SessionLog(tmp_path, world, file=FullDisk(room))
    session = Session(world, logs=[log])
    session.begin()
    for _ in range(10):
        session.advance(Input(1))
    assert session.tick == 10
    assert log.error is not None and "No space left" in log.error
    log.close()


KILLED = """
import sys
sys.path[:0] = sys.argv[2:]
from pathlib import Path
from stub_world import ACTIONS, StubWorld
from game.players import RandomPlayer
from game.recorder import record_rollout
print("ready", flush=True)
done = lambda n: print(n, flush=True) if n > 50 else None
record_rollout(StubWorld(), RandomPlayer(ACTIONS, 0), 1000000, Path(sys.argv[1]), progress=done)
"""


def test_a_killed_rollout_loses_at_most_a_tick(tmp_path: Path) -> None:
    tests = Path(__file__).parent
    command = [sys.executable, "-c", KILLED, str(tmp_path / "out"), str(tests), str(tests.parent)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    last = 0
    while last < 200:
        line = child.stdout.readline()
        last = int(line) if line.strip().isdigit() else last
    os.kill(child.pid, signal.SIGKILL)
    rest = child.stdout.read()
    child.stdout.close()
    child.wait()
    last = max([last, *(int(n) for n in rest.split("\n")[:-1] if n)])
    partial = tmp_path / "out.partial"
    frames = open_frames(partial / "frames.npy")
    recording = read_recording(partial)
    compared, difference = replay(recording, StubWorld())
    assert difference is None
    assert compared >= last - 1
    assert abs(len(frames) - 1 - compared) <= 1
    world = StubWorld()
    np.testing.assert_array_equal(frames[0], world.reset().image)
    np.testing.assert_array_equal(frames[1], world.step(timeline(recording)[2][0]).image)


def test_a_rollout_is_an_episode_and_replays(tmp_path: Path) -> None:
    out = record_rollout(StubWorld(), Wanderer(ACTIONS, 0), 40, tmp_path / "out", seed=2, scene="yard")
    episode = read_episode(out)
    assert (len(episode), episode.frames.shape) == (40, (41, 20, 32, 3))
    world = StubWorld()
    np.testing.assert_array_equal(episode.frames[0], world.reset(2, "yard").image)
    for frame, action in zip(episode.frames[1:], episode.actions, strict=True):
        np.testing.assert_array_equal(frame, world.step(int(action)).image)
    assert "40 ticks replay exactly" in report(read_recording(out), StubWorld())
    assert not (tmp_path / "out.partial").exists()


def test_a_rollout_ends_with_the_dream(tmp_path: Path) -> None:
    world = StubWorld(lasts=7)
    out = record_rollout(world, Wanderer(ACTIONS, 0), 40, tmp_path / "out")
    episode = read_episode(out)
    assert (len(episode), episode.frames.shape) == (7, (8, 20, 32, 3))
    assert episode.header["terminated"] is True
    assert np.load(out / "frames.npy").shape == (8, 20, 32, 3)
    assert "7 ticks replay exactly" in report(read_recording(out), StubWorld(lasts=7))
    whole = read_episode(record_rollout(StubWorld(), Wanderer(ACTIONS, 0), 7, tmp_path / "whole"))
    assert whole.header["terminated"] is False


def test_a_rollout_never_overwrites(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("x")
    with pytest.raises(DataError, match="exists already"):
        record_rollout(StubWorld(), RandomPlayer(ACTIONS), 3, tmp_path / "out")
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["precious"]


def test_a_rollout_into_a_file_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="cannot be written"):
        record_rollout(StubWorld(), RandomPlayer(ACTIONS), 3, tmp_path / "file" / "out")
    assert [p.name for p in tmp_path.rglob("*")] == ["file"]


def test_scripts(tmp_path: Path) -> None:
    path = tmp_path / "walk.txt"
    path.write_text("# a walk\nforward 3\n\nleft # once\nidle 2\n")
    assert read_script(path, ACTIONS) == [1, 1, 1, 3, 0, 0]
    player = player_for(str(path), ACTIONS)
    assert [player.act(0, None) for _ in range(7)] == [1, 1, 1, 3, 0, 0, 0]
    for text, reason in [
        ("forward\nfly 3\n", "line 2: no action 'fly'"),
        ("forward -1", "line 1: expected"),
        ("forward x", "line 1: expected"),
        ("forward 3 4", "line 1: expected"),
        ("forward 99999999", "longer than"),
    ]:
        path.write_text(text)
        with pytest.raises(DataError, match=reason):
            read_script(path, ACTIONS)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="cannot be read"):
        read_script(path, ACTIONS)
    with pytest.raises(DataError, match="neither random nor wander"):
        player_for("nothing", ACTIONS)


def test_players_are_deterministic_by_seed() -> None:
    image = np.zeros((20, 32, 3), np.uint8)
    for kind in ("random", "wander"):
        one, two, other = (player_for(kind, ACTIONS, seed) for seed in (1, 1, 2))
        walks = [[p.act(0, image) for _ in range(200)] for p in (one, two, other)]
        assert walks[0] == walks[1] != walks[2]
        assert set(walks[0]) <= set(range(7))


def test_the_wanderer_turns_away_from_a_picture_that_stands_still() -> None:
    player = Wanderer(ACTIONS, 3)
    image = np.zeros((20, 32, 3), np.uint8)
    still = [player.act(0, image) for _ in range(300)]
    rng = np.random.default_rng(0)
    player = Wanderer(ACTIONS, 3)
    moving = [player.act(0, rng.integers(0, 255, image.shape).astype(np.uint8)) for _ in range(300)]
    turns = [sum(a in (3, 4) for a in walk) for walk in (still, moving)]
    assert turns[0] > 1.5 * turns[1]


def test_png_reads_back() -> None:
    from PIL import Image

    image = np.random.default_rng(0).integers(0, 256, (7, 11, 3)).astype(np.uint8)
    opened = Image.open(io.BytesIO(png_bytes(image, {"tick": "7"})))
    np.testing.assert_array_equal(np.asarray(opened), image)
    assert opened.info["tick"] == "7"
    with pytest.raises(ValueError, match="uint8"):
        png_bytes(image.astype(np.float32))
