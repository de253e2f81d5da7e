"""A real game that is played, taken back, and kept as an episode."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from game.episode_log import MIN_TICKS, UNFINISHED, EpisodeLog, check_seed
from game.keys import Command, Input
from game.play import Options, play
from game.players import Listed
from game.session import Session
from game.slots import Slots
from game.source_world import LEAST, SourceWorld, Tape
from stub_source import StubSource
from stub_world import hold, press
from world_model.data.collect import record_episode
from world_model.data.episodes import SPLITS, list_episodes, read_episode
from world_model.data.sources import Label, Observation


def _straight(seed: int, actions: list[int], length: int = 10_000) -> list[np.ndarray]:
    """What the real game shows when nothing is ever taken back."""
    tape = Tape(StubSource(length))
    return [tape.begin(seed).image, *(tape.step(a).image for a in actions)]


def test_where_a_game_is_over_its_last_picture_shows_and_then_the_next_begins() -> None:
    source = StubSource(length=5)
    tape = Tape(source)
    tape.begin(3)
    overs = [tape.over for _ in range(12) if tape.step(1)]
    assert [i for i, over in enumerate(overs, 1) if over] == [5, 11]
    assert source.seeds == [3, 4, 5]
    assert (tape.game_seed, tape.began) == (5, 12)


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("step"), st.integers(0, 6)),
            st.tuples(st.just("mark"), st.integers(0, 3)),
            st.tuples(st.just("go"), st.integers(0, 3)),
        ),
        max_size=60,
    ),
    st.integers(3, 40),
)
def test_going_back_and_forth_is_the_same_as_going_there_at_once(
    does: list[tuple[str, int]], length: int
) -> None:
    tape = Tape(StubSource(length), room=1)
    tape._most = 5
    tape.begin(1)
    way: list[int] = []
    marks = {}
    for what, which in does:
        if what == "step":
            tape.step(which)
            way.append(which)
        elif what == "mark":
            marks[which] = (tape.mark(), list(way))
        elif which in marks:
            mark, way = marks[which][0], list(marks[which][1])
            tape.go(mark)
    pictures = _straight(1, way, length)
    np.testing.assert_array_equal(tape.now.image, pictures[-1])
    first = max(len(way) - 4, 0)
    obs, act = tape.stretch(first)
    np.testing.assert_array_equal(obs, np.stack(pictures[first:]))
    assert act.tolist() == way[first:]


def test_a_long_rewind_plays_the_game_again_now_and_then_and_keeps_few_pictures() -> None:
    source = StubSource()
    world = SourceWorld(source)
    world.tape._room = 1
    session = Session(world)
    session.begin(seed=1)
    pictures = [session.frame.image]
    for tick in range(600):
        session.advance(Input(tick % 7))
        pictures.append(session.frame.image)
    before = source.steps
    for _ in range(1200):
        session.advance(hold(Command.REWIND))
        np.testing.assert_array_equal(session.frame.image, pictures[session.tick])
        assert len(world.tape._seen) <= LEAST
        if session.tick == 0:
            break
    assert session.tick == 0
    assert source.steps - before < 600 * 600 / LEAST * 2


def test_a_slot_brings_a_real_game_back(tmp_path: Path) -> None:
    world = SourceWorld(StubSource(length=20))
    session = Session(world, slots=Slots(tmp_path, world))
    session.begin(seed=4)
    for tick in range(30):
        session.advance(Input(tick % 7))
    session.advance(press(Command.SAVE))
    wanted = _straight(4, [*(t % 7 for t in range(30)), 0], 20)
    again = SourceWorld(StubSource(length=20))
    for other in (session, Session(again, slots=Slots(tmp_path, again))):
        other.begin(seed=9)
        other.advance(press(Command.PAUSE))
        other.advance(press(Command.LOAD))
        while other.recall_left:
            other.advance(Input())
        assert other.tick == 30
        np.testing.assert_array_equal(other.frame.image, wanted[30])


def _played(tmp_path: Path, length: int = 10_000) -> tuple[Session, EpisodeLog, StubSource]:
    source = StubSource(length)
    world = SourceWorld(source)
    log = EpisodeLog(tmp_path, world)
    session = Session(world, logs=[log])
    session.begin(seed=7)
    return session, log, source


def test_a_session_is_the_episode_that_collect_would_have_written(tmp_path: Path) -> None:
    session, log, _ = _played(tmp_path)
    expected = record_episode(StubSource(), 7, 80)
    for action in expected.actions:
        session.advance(Input(int(action)))
    log.close()
    (folder,) = list_episodes(tmp_path, "train")
    episode = read_episode(folder)
    for name in ("frames", "actions", "phases", "pose", "rewards"):
        np.testing.assert_array_equal(getattr(episode, name), getattr(expected, name), err_msg=name)
        assert getattr(episode, name).dtype == getattr(expected, name).dtype, name
    assert {k: v for k, v in episode.header.items() if k != "schema"} == {
        k: v if k != "alignment" else episode.header[k] for k, v in expected.header.items()
    }
    assert not list((tmp_path / UNFINISHED).iterdir())


def test_after_a_rewind_the_episode_holds_what_was_played_last(tmp_path: Path) -> None:
    session, log, _ = _played(tmp_path)
    for tick in range(100):
        session.advance(Input(tick % 7))
    for _ in range(30):
        session.advance(hold(Command.REWIND))
    at = session.tick
    for _ in range(40):
        session.advance(Input(5))
    log.close()
    episode = read_episode(list_episodes(tmp_path, "train")[0])
    taken = [*(t % 7 for t in range(at)), *[5] * 40]
    assert episode.actions.tolist() == taken
    np.testing.assert_array_equal(episode.frames, np.stack(_straight(7, taken)))
    assert episode.phases.tolist() == [t % 5 for t in range(len(taken))]


def test_every_game_of_a_session_is_an_episode_of_its_own(tmp_path: Path) -> None:
    session, log, _ = _played(tmp_path, length=60)
    for _ in range(60 + 1 + 55):  # the tick between them belongs to neither
        session.advance(Input(1))
    session.advance(press(Command.RESTART))
    for _ in range(51):
        session.advance(Input(2))
    log.close()
    kept = {e.header["seed"]: e for e in map(read_episode, list_episodes(tmp_path, "train"))}
    assert {seed: len(e) for seed, e in kept.items()} == {7: 60, 8: 55} or len(kept) == 2
    assert kept[7].header["terminated"]
    np.testing.assert_array_equal(kept[7].frames, np.stack(_straight(7, [1] * 60)))


def test_what_is_too_short_to_be_trained_on_is_not_kept_and_said(tmp_path: Path) -> None:
    session, log, _ = _played(tmp_path)
    for _ in range(MIN_TICKS - 1):
        session.advance(Input(1))
    log.close()
    assert not (tmp_path / "train").exists()
    assert "too short" in log.notes[0]


def test_held_out_seeds_are_not_trained_on(tmp_path: Path) -> None:
    check_seed(SPLITS["val"] - 1)
    with pytest.raises(ValueError, match="held out"):
        check_seed(SPLITS["val"])
    world = SourceWorld(StubSource())
    log = EpisodeLog(tmp_path, world)
    session = Session(world, logs=[log])
    session.begin(seed=SPLITS["val"] - 1)
    session.advance(press(Command.RESTART))  # the next seed is the first that is held out
    for _ in range(80):
        session.advance(Input(1))
    log.close()
    assert not (tmp_path / "train").exists()
    assert "held out" in log.notes[-1]


def test_a_full_disk_stops_the_episode_and_not_the_game(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, log, _ = _played(tmp_path)

    def refuse(store: object, action: int, obs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("game.episode_store.Store.append", refuse)
    for _ in range(3):
        session.advance(Input(1))
    assert session.tick == 3
    assert log.error == f"the episode is no longer kept: No space left on device ({tmp_path})"
    log.close()


KILLED = """
import sys
sys.path[:0] = sys.argv[2:]
from pathlib import Path
from game.episode_log import EpisodeLog
from game.keys import Input
from game.session import Session
from game.source_world import SourceWorld
from stub_source import StubSource
world = SourceWorld(StubSource())
session = Session(world, logs=[EpisodeLog(Path(sys.argv[1]), world)])
session.begin(seed=7)
for tick in range(10**6):
    session.advance(Input(tick % 7))
    print(tick, flush=True)
"""


def test_the_next_session_keeps_what_a_killed_one_left(tmp_path: Path) -> None:
    tests = Path(__file__).parent
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path), str(tests), str(tests.parent)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    while (line := child.stdout.readline()) and int(line) < 120:
        pass
    assert not EpisodeLog(tmp_path, SourceWorld(StubSource())).notes  # it still runs
    child.kill()
    last = max(int(n) for n in [line, *child.stdout.read().split("\n")[:-1]])
    child.stdout.close()
    child.wait()
    log = EpisodeLog(tmp_path, SourceWorld(StubSource()))
    assert "an episode of" in log.notes[0]
    episode = read_episode(list_episodes(tmp_path, "train")[0])
    assert last <= len(episode) <= last + 2
    np.testing.assert_array_equal(
        episode.frames, np.stack(_straight(7, [t % 7 for t in range(len(episode))]))
    )


def test_play_on_a_real_game_keeps_an_episode_and_says_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("game.twin.make_source", lambda name, sound: StubSource())
    options = Options(source="stub", fast=True, ticks=60, home=tmp_path, player="wander")
    summary = play(options, lambda name: None, dict)
    assert summary is not None
    (folder,) = list_episodes(tmp_path / "episodes" / "stub", "train")
    assert summary.lines()[-1] == f"an episode of 60 ticks: {folder}"
    play(
        Options(source="stub", fast=True, ticks=60, home=tmp_path, out=tmp_path / "d"),
        lambda name: None,
        dict,
    )
    assert len(read_episode(list_episodes(tmp_path / "d", "train")[0])) == 60
    with pytest.raises(ValueError, match="held out"):
        play(Options(source="stub", seed=10**9, home=tmp_path), lambda name: None, dict)


class Fought(StubSource):
    """Tells what is seen and how the player is."""

    variables = ("HEALTH", "KILLCOUNT")

    def reset(self, seed: int) -> Observation:
        self._ticks = 0
        return self._told(super().reset(seed))

    def step(self, action: int) -> Observation:
        self._ticks += 1
        return self._told(super().step(action))

    def _told(self, obs: Observation) -> Observation:
        seen = [Label("imp", 1, 2, 3, 4)] if self._ticks % 2 else []
        seen += [Label("clip", 5, self._ticks, 7, 8)] if self._ticks >= 10 else []
        numbers = np.array([100 - self._ticks, self._ticks // 9], np.int32)
        return replace(obs, labels=tuple(seen), variables=numbers)


def test_an_episode_of_a_fight_tells_what_was_seen_and_how_it_stood(tmp_path: Path) -> None:
    world = SourceWorld(Fought())
    session = Session(world, Listed("all", [0] * 60), [EpisodeLog(tmp_path, world)])
    session.begin(seed=3)
    for _ in range(60):
        session.advance(Input())
    for log in session.logs:
        log.close()
    episode = read_episode(list_episodes(tmp_path, "train")[0])
    assert episode.header["variables"] == ["HEALTH", "KILLCOUNT"]
    assert episode.header["labels"] == ["imp", "clip"]
    assert episode.variables is not None and episode.labels is not None
    assert episode.variables[:, 0].tolist() == list(range(100, 39, -1))
    assert episode.labels.shape == (61, 2, 5)
    assert episode.labels[11].tolist() == [[1, 1, 2, 3, 4], [2, 5, 11, 7, 8]]
    assert episode.labels[1].tolist() == [[1, 1, 2, 3, 4], [0] * 5]
    assert not episode.labels[0].any()


def test_an_interrupted_session_leaves_a_whole_episode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("game.twin.make_source", lambda name, sound: StubSource())
    polls = iter([Input(1)] * 70)

    def poll(window: object) -> Input:
        asked = next(polls, None)
        if asked is None:
            raise KeyboardInterrupt
        return asked

    monkeypatch.setattr("game.window.Window.poll", poll)
    summary = play(Options(source="stub", fast=True, home=tmp_path), lambda name: None, dict)
    assert summary is not None and summary.interrupted
    (folder,) = list_episodes(tmp_path / "episodes" / "stub", "train")
    assert 60 <= len(read_episode(folder)) <= 70


@pytest.mark.doom
def test_the_real_rooms_repeat_themselves_after_going_back() -> None:
    pytest.importorskip("vizdoom")
    from world_model.data.sources import make_source

    source = make_source("rooms")
    try:
        tape = Tape(source, room=1)
        tape.begin(5)
        way = [1] * 30 + [3] * 20 + [1] * 30 + [4] * 15
        shown = [tape.step(a) for a in way]
        start = tape.mark()
        for action in (1, 1, 5):
            tape.step(action)
        tape.go(start)
        obs, _ = tape.stretch(60)
        np.testing.assert_array_equal(obs, np.stack([o.image for o in shown[59:]]))
    finally:
        source.close()
