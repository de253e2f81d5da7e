"""The last half minute as a recording of its own: it begins where it says, and replays."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import numpy as np
import pytest

from game.bindings import read_bindings
from game.clip import GRAIN, STRETCHES, LastSeconds
from game.keys import Command, Input, default_bindings
from game.labels import help_columns
from game.players import RandomPlayer
from game.recorder import LOG_NAME
from game.replay import read_recording, render, replay, timeline
from game.session import Mode, Session
from game.slots import Slots
from stub_world import ACTIONS, PackingWorld, StubWorld, hold, press
from world_model.types import FPS, DataError, Frame

REWIND = hold(Command.REWIND)


def _session(tmp_path: Path, world: StubWorld | None = None) -> tuple[Session, LastSeconds]:
    world = world or PackingWorld()
    last = LastSeconds(world)
    session = Session(
        world,
        RandomPlayer(ACTIONS, 1),
        [last],
        Slots(tmp_path / "slots", world),
        keep_last=lambda: last.save_in(tmp_path / "clips"),
    )
    session.begin(seed=4)
    return session, last


def _run(session: Session, ticks: int, asked: Input | None = None) -> None:
    for _ in range(ticks):
        session.advance(asked or Input())


def _clip(tmp_path: Path) -> Path:
    (clip,) = (tmp_path / "clips").iterdir()
    return clip


@pytest.mark.parametrize("ticks", [0, 1, 20, GRAIN, 700, 2000, 2011])
def test_a_key_keeps_the_last_half_minute_and_it_replays(tmp_path: Path, ticks: int) -> None:
    session, _ = _session(tmp_path)
    _run(session, ticks)
    session.advance(press(Command.PAUSE))
    session.advance(press(Command.CLIP))
    clip = _clip(tmp_path)
    assert str(clip) in session.messages[-1]
    world, shown = PackingWorld(), []
    compared, difference = replay(read_recording(clip), world, shown.append)
    assert difference is None
    assert min(ticks, 30 * FPS) <= compared <= min(ticks, 35 * FPS)
    assert len(shown) == compared + 1
    np.testing.assert_array_equal(shown[-1].image, session.frame.image)
    assert world.snapshot().hash() == session.world.snapshot().hash()
    assert session.history is not None
    assert timeline(read_recording(clip)) == (4, None, list(session.history.actions))
    assert world.steps == compared, "the way to the clip's beginning need not be dreamt again"


def test_what_was_played_is_kept_and_not_only_what_is_left_of_it(tmp_path: Path) -> None:
    session, last = _session(tmp_path)
    _run(session, 900)
    _run(session, 60, REWIND)
    _run(session, 80)
    session.advance(press(Command.SAVE))
    session.advance(press(Command.RESTART))
    _run(session, 30)
    session.advance(press(Command.LOAD))
    _run(session, 10)
    ticks = last.ticks
    session.advance(press(Command.CLIP))
    assert replay(read_recording(_clip(tmp_path)), PackingWorld()) == (ticks, None)
    starts = [r["start"] for r in read_recording(_clip(tmp_path)).records if "start" in r]
    assert [start["seed"] for start in starts] == [4, 4, 5, 4]
    assert all((_clip(tmp_path) / start["file"]).is_file() for start in starts)


def test_a_clip_ends_where_rewinding_stands(tmp_path: Path) -> None:
    session, _ = _session(tmp_path)
    _run(session, 300)
    _run(session, 100, REWIND)
    session.advance(Input(0, ((Command.CLIP, ""), (Command.PAUSE, "")), frozenset({Command.REWIND})))
    assert session.mode in (Mode.PAUSED, Mode.REWINDING)
    seed, _, actions = timeline(read_recording(_clip(tmp_path)))
    assert (seed, len(actions)) == (4, 200)
    assert replay(read_recording(_clip(tmp_path)), PackingWorld()) == (300, None)


@pytest.mark.parametrize("damage", ["gone", "rubbish", "of another moment"])
def test_without_its_state_the_way_to_a_clip_is_dreamt(tmp_path: Path, damage: str) -> None:
    session, _ = _session(tmp_path)
    _run(session, 1000)
    session.advance(press(Command.CLIP))
    clip = _clip(tmp_path)
    (path,) = clip.glob("*.state")
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(b"rubbish" if damage == "rubbish" else session.world.pack_state(session.world.state))
    world = PackingWorld()
    compared, difference = replay(read_recording(clip), world)
    assert difference is None and compared >= 750
    assert world.steps == 1000 > compared


def test_a_world_that_cannot_write_its_state_has_clips_too(tmp_path: Path) -> None:
    session, _ = _session(tmp_path, StubWorld())
    _run(session, 1000)
    session.advance(press(Command.CLIP))
    assert [path.name for path in _clip(tmp_path).iterdir()] == [LOG_NAME]
    assert replay(read_recording(_clip(tmp_path)), StubWorld())[1] is None


def test_a_recording_names_no_file_elsewhere(tmp_path: Path) -> None:
    session, _ = _session(tmp_path)
    _run(session, 10)
    session.advance(press(Command.CLIP))
    outside = tmp_path / "start0.state"
    (_clip(tmp_path) / "start0.state").rename(outside)
    recording = read_recording(_clip(tmp_path))
    for name in ("../../start0.state", str(outside), "", 3):
        recording.records[0]["start"]["file"] = name
        world = PackingWorld()
        read: list[bytes] = []
        world.unpack_state = read.append  # type: ignore[method-assign, assignment]
        assert replay(recording, world)[1] is None
        assert not read


def test_another_state_in_a_clip_is_a_difference(tmp_path: Path) -> None:
    session, _ = _session(tmp_path)
    _run(session, 200)
    session.advance(press(Command.CLIP))
    recording = read_recording(_clip(tmp_path))
    recording.records[0]["start"]["state"] = "00" * 32
    difference = replay(recording, PackingWorld())[1]
    assert difference is not None and (difference.tick, difference.what) == (0, "the state")


def test_memory_is_bounded_however_often_time_jumps(tmp_path: Path) -> None:
    session, last = _session(tmp_path)
    for _ in range(200):
        _run(session, 3)
        _run(session, 2, REWIND)
    assert len(last._stretches) == STRETCHES
    _run(session, 3000)
    assert len(last._stretches) <= 8
    assert 30 * FPS <= last.ticks <= 35 * FPS


def test_an_hour_of_play_is_held_once(tmp_path: Path) -> None:
    frame, last = StubWorld().reset(), LastSeconds(StubWorld())
    last._world.reset()
    last.start(0, None, range(7), frame)
    for tick in range(8, 1000):
        last.tick(tick, 1, frame)
    held = {id(stretch.timeline): len(stretch.timeline) for stretch in last._stretches}
    assert len(last._stretches) > 3 and sum(held.values()) == 999


def test_a_full_disk_is_one_message_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, _ = _session(tmp_path)
    _run(session, 50)

    def full(path: Path, chunks: object) -> None:
        raise DataError(f"{path}: could not be saved (No space left on device)")

    with monkeypatch.context() as patch:
        patch.setattr("game.clip.write_atomic", full)
        session.advance(press(Command.CLIP))
    assert "No space left" in session.messages[-1]
    assert not list((tmp_path / "clips").iterdir())
    session.advance(press(Command.CLIP))
    assert replay(read_recording(_clip(tmp_path)), PackingWorld())[1] is None


def test_a_full_disk_in_the_log_is_found_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session, last = _session(tmp_path)
    _run(session, 50)

    class Full:
        error = None

        def __init__(self, folder: Path, *rest: object) -> None:
            folder.mkdir(parents=True)

        def write(self, record: object) -> None:
            self.error = f"recording has stopped: errno {errno.ENOSPC}"

        def close(self) -> None: ...

    monkeypatch.setattr("game.clip.SessionLog", Full)
    with pytest.raises(DataError, match="recording has stopped"):
        last.save(tmp_path / "clip")
    assert not (tmp_path / "clip").exists()


def test_the_key_is_in_the_help_and_can_be_another(tmp_path: Path) -> None:
    (tmp_path / "keys.toml").write_text('[commands]\nclip = ["k"]\n')
    for bindings, key in ((default_bindings(), "F6"), (read_bindings(tmp_path / "keys.toml"), "K")):
        rows = [row for column in help_columns(ACTIONS, bindings) for row in column]
        assert (key, "keep the last 30 s") in rows


def test_without_states_the_key_says_so() -> None:
    session = Session(StubWorld())
    session.begin()
    session.advance(press(Command.CLIP))
    assert "cannot be kept" in session.messages[-1]


def test_pictures_that_were_left_out_are_painted_in_the_clip(tmp_path: Path) -> None:
    session, _ = _session(tmp_path)
    session.player = session.human
    session.paint_every = 2
    _run(session, 99)
    session.advance(press(Command.CLIP))
    shown: list[Frame] = []
    text = (_clip(tmp_path) / LOG_NAME).read_text()
    records = [json.loads(line[9:]) for line in text.splitlines()]
    assert sum("picture" in record for record in records if "tick" in record) == 49
    assert replay(read_recording(_clip(tmp_path)), PackingWorld(), shown.append) == (99, None)
    assert [int(frame.image[0, 0, 1]) for frame in shown] == list(range(100))


def test_a_clip_becomes_a_film(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    session, _ = _session(tmp_path)
    _run(session, 30)
    session.advance(press(Command.CLIP))
    film = tmp_path / "film.mp4"
    assert "30 ticks replay exactly; 31 pictures" in render(
        read_recording(_clip(tmp_path)), PackingWorld(), film, (64, 40)
    )
    with av.open(str(film)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 31
