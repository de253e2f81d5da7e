"""Time travel is exact: whatever was done before, a moment's state is the one that its actions give."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from game.history import GRAIN, HORIZON, History
from game.keys import Command, Input
from game.players import Listed, RandomPlayer, Wanderer
from game.session import Mode, Session
from game.slots import Slots
from stub_world import ACTIONS, FORWARD, LEFT, PackingWorld, StubWorld, hold, press
from world_model.types import DataError

REWIND = hold(Command.REWIND)


def _session(tmp_path: Path | None = None, world: StubWorld | None = None) -> Session:
    world = world or StubWorld()
    session = Session(world, slots=Slots(tmp_path, world) if tmp_path else None)
    session.begin(seed=5)
    return session


def _walk(session: Session, ticks: int, seed: int = 0) -> None:
    for action in np.random.default_rng(seed).integers(0, 7, ticks):
        session.advance(Input(int(action)))


def _state(session: Session) -> str:
    return str(session.world.snapshot().hash())


def _recomputed(session: Session) -> str:
    """The hash of the moment, by stepping a fresh world with the actions alone."""
    assert session.history is not None
    world = StubWorld()
    world.reset(session.seed, session.scene)
    for action in session.history.actions:
        world.step(action)
    return world.snapshot().hash()


def test_pause_stands_still_and_advance_goes_one_tick() -> None:
    session = _session()
    session.advance(press(Command.PAUSE))
    session.advance(Input(FORWARD))
    assert session.tick == 0
    session.advance(press(Command.ADVANCE, action=FORWARD))
    assert (session.tick, session.frame.image[0, 0, 0]) == (1, FORWARD)
    session.advance(press(Command.PAUSE))
    assert session.tick == 2


def test_advance_pauses_a_game_that_runs() -> None:
    session = _session()
    session.advance(press(Command.ADVANCE))
    assert session.mode == Mode.PAUSED


def test_the_end_is_said_once_and_one_can_go_back_or_begin_anew() -> None:
    session = _session(world=StubWorld(lasts=5))
    for _ in range(8):
        session.advance(Input(FORWARD))
    assert [m for m in session.messages if "over" in m] == [
        "it is over: begin anew or go back (help shows the keys)"
    ]
    for _ in range(6):
        session.advance(REWIND)
    session.advance(Input())
    assert session.tick < 5 and not session.frame.info.over
    session.advance(press(Command.RESTART))
    assert session.tick <= 1 and not session.frame.info.over


def test_slow_motion_steps_every_nth_tick_and_keeps_taps() -> None:
    session = _session()
    for _ in range(2):
        session.advance(press(Command.SLOWER))
    before = session.tick
    for i in range(16):
        session.advance(Input(LEFT if i == 9 else 0))
    assert session.tick - before == 4
    assert session.history is not None
    assert list(session.history.actions).count(LEFT) == 1


def test_fast_forward_steps_several_times_a_tick() -> None:
    session = _session()
    session.advance(hold(Command.FAST_FORWARD, FORWARD))
    assert session.tick == 8


@pytest.mark.parametrize("back", [1, 7, 40, 60, 120, 199, 300])
def test_rewinding_shows_each_picture_backwards_and_ends_exactly(back: int) -> None:
    session = _session()
    shown = [session.frame.image]
    for action in np.random.default_rng(1).integers(0, 7, 230):
        shown.append(session.advance(Input(int(action))).image)
    seen = 0
    while seen < back and session.tick > 0:
        tick = session.tick
        image = session.advance(REWIND).image
        np.testing.assert_array_equal(image, shown[session.tick])
        assert tick - session.tick in (0, 1)
        seen += tick - session.tick
    assert session.tick == max(230 - back, 0)
    if session.tick == 0:
        session.advance(REWIND)
    frame = session.frame
    session.advance(press(Command.PAUSE))
    assert session.mode == Mode.PAUSED
    np.testing.assert_array_equal(session.frame.image, frame.image)
    assert _state(session) == _recomputed(session)


def _unpainted(ticks: int, every: int = 2) -> tuple[Session, list[bytes]]:
    """A session that has left out pictures on the way, and all the pictures that there were to see."""
    world = StubWorld()
    pictures = [world.reset(5).image.tobytes()]
    session = _session()
    session.paint_every = every
    for action in np.random.default_rng(1).integers(0, 7, ticks):
        pictures.append(world.step(int(action)).image.tobytes())
        session.advance(Input(int(action)))
    return session, pictures


@pytest.mark.parametrize("ticks", [1, 49, 51, 99, 130])
def test_rewinding_shows_the_pictures_that_were_left_out(ticks: int) -> None:
    session, pictures = _unpainted(ticks)
    for _ in range(ticks):
        frame = session.advance(REWIND)
        assert frame.image.tobytes() == pictures[session.tick]
    session.advance(press(Command.PAUSE))
    assert session.frame.image.tobytes() == pictures[session.tick]
    session.advance(press(Command.PAUSE))
    assert _state(session) == _recomputed(session)


def test_a_tick_that_was_not_painted_is_when_it_is_looked_at(tmp_path: Path) -> None:
    session, pictures = _unpainted(7)
    assert not session.frame.info.painted
    session.slots, session._screenshots = Slots(tmp_path, session.world), tmp_path
    session.advance(Input(2, ((Command.SCREENSHOT, ""), (Command.SAVE, ""), (Command.PAUSE, ""))))
    assert session.frame.image.tobytes() == pictures[7]
    shot = Image.open(tmp_path / "stub-5-7.png")
    assert np.asarray(shot).tobytes() == pictures[7]
    for _ in range(3):
        session.advance(press(Command.ADVANCE, action=LEFT))
        assert session.frame.info.painted and session.frame.image[0, 0, 1] == session.tick
    session.advance(press(Command.LOAD))
    assert (session.tick, session.frame.image.tobytes()) == (7, pictures[7])


def test_slow_motion_paints_what_it_has_time_for() -> None:
    session, _ = _unpainted(7)
    session.advance(press(Command.SLOWER))
    for _ in range(9):
        session.advance(Input(1))
    session.advance(Input(1)) if session._phase == 0 else None
    assert session.frame.info.painted and session.frame.image[0, 0, 1] == session.tick


def test_fast_forward_paints_only_what_is_shown() -> None:
    world = StubWorld()
    session = _session(world=world)
    before = world.painted
    frame = session.advance(hold(Command.FAST_FORWARD, FORWARD))
    assert (session.tick, world.painted - before) == (8, 1)
    assert frame.info.painted and frame.image[0, 0, 1] == 8
    assert _state(session) == _recomputed(session)


def test_a_player_that_looks_chooses_the_same_however_slow_the_machine_is() -> None:
    walks = []
    for every in (1, 2):
        session = Session(StubWorld(), Wanderer(ACTIONS, 3))
        session.begin()
        session.paint_every = every
        for _ in range(300):
            session.advance(Input())
        assert session.history is not None
        walks.append(list(session.history.actions))
    assert walks[0] == walks[1]


def test_rewinding_does_not_stutter() -> None:
    session = _session()
    _walk(session, 600)
    for i in range(500):
        session.advance(REWIND)
        assert session.tick == 599 - i


def test_after_rewinding_another_way_can_be_taken() -> None:
    session = _session()
    _walk(session, 100)
    for _ in range(30):
        session.advance(REWIND)
    session.advance(Input(LEFT))
    assert session.tick == 71
    assert _state(session) == _recomputed(session)


def test_memory_is_bounded_and_five_minutes_can_be_reached() -> None:
    world = StubWorld(state_bytes=4 << 20)
    session = _session(world=world)
    assert session.history is not None
    for _ in range(12_000):
        session.advance(Input(FORWARD))
    assert session.history.nbytes < 130 << 20
    assert session.tick - session.history.floor >= 5 * 60 * 25
    assert session.tick - session.history.floor <= HORIZON
    gaps = np.diff(sorted(session.history._anchors))
    assert gaps.max() < 600
    assert world.steps == 12_000


def test_seek_refuses_ticks_out_of_reach() -> None:
    world = StubWorld()
    history = History(world)
    history.begin(world.reset())
    with pytest.raises(ValueError, match="out of reach"):
        history.seek(GRAIN)


def test_slots_bring_back_the_moment_and_branch(tmp_path: Path) -> None:
    session = _session(tmp_path)
    _walk(session, 60)
    session.advance(press(Command.PAUSE))
    session.advance(press(Command.SAVE))
    saved = _state(session)
    session.advance(press(Command.PAUSE))
    _walk(session, 40, seed=1)
    session.advance(press(Command.RESTART))
    session.advance(press(Command.PAUSE))
    session.advance(press(Command.LOAD))
    assert (_state(session), session.tick, session.seed) == (saved, 60, 5)
    session.advance(press(Command.PAUSE))
    assert _state(session) == _recomputed(session)


def test_a_slot_survives_the_program(tmp_path: Path) -> None:
    session = _session(tmp_path)
    _walk(session, 50)
    session.advance(press(Command.PAUSE))
    for step in (press(Command.SLOT, "7"), press(Command.SAVE)):
        session.advance(step)
    saved = _state(session)
    later = _session(tmp_path)
    later.advance(press(Command.SLOT, "7"))
    assert list(later.messages)[-1] == "slot 7: tick 50"
    later.advance(press(Command.LOAD))
    while later.mode == Mode.RECALLING:
        later.advance(Input(LEFT))
    assert (later.mode, later.tick, _state(later)) == (Mode.PAUSED, 50, saved)
    assert "back at tick 50" in later.messages[-1]


@pytest.mark.parametrize("damage", [None, "slot3-*.state"])
def test_a_packed_state_is_back_at_once_and_a_damaged_one_is_dreamt_again(
    tmp_path: Path, damage: str | None
) -> None:
    session = _session(tmp_path, PackingWorld())
    _walk(session, 50)
    for asked in (press(Command.PAUSE), press(Command.SLOT, "3"), press(Command.SAVE)):
        session.advance(asked)
    saved, picture = _state(session), session.frame.image
    if damage:
        (path,) = (tmp_path / "stub").glob(damage)
        path.write_bytes(b"rubbish")
    later = _session(tmp_path, PackingWorld())
    later.advance(press(Command.SLOT, "3"))
    later.advance(press(Command.LOAD))
    assert (later.mode == Mode.RECALLING) == bool(damage)
    while later.mode == Mode.RECALLING:
        later.advance(Input())
    later.advance(press(Command.PAUSE)) if later.mode == Mode.PLAYING else None
    assert later.history is not None
    frame = later.frame if damage else later.history.anchor(50).frame
    np.testing.assert_array_equal(frame.image, picture)
    assert later.world.snapshot().hash() == saved or later.tick > 50
    assert _state(later) == _recomputed(later)


def test_rewinding_five_minutes_stays_within_its_memory() -> None:
    world = StubWorld(state_bytes=3_200_000)
    session = _session(world=world)
    for _ in range(9000):
        session.advance(Input(FORWARD))
    assert session.history is not None
    peak = held = 0
    for _ in range(7500):
        session.advance(REWIND)
        rewind = session._rewind
        assert rewind is not None
        pictures = len(rewind._ready) + len(rewind._built or []) + len(session.history.recent)
        held = session.history.nbytes + pictures * 160 * 256 * 3 + len(rewind.near) * world._bytes
        peak = max(peak, held)
    assert session.tick < 1500 + 15  # where a long stretch comes before a short one it may wait a little
    assert peak < 200_000_000


def test_bad_slots_are_one_message_each_and_play_goes_on(tmp_path: Path) -> None:
    session = _session(tmp_path)
    session.advance(press(Command.LOAD))
    assert session.messages.pop() == "slot 1 is empty"
    session.advance(press(Command.SAVE))
    path = tmp_path / "stub" / "slot1.json"
    good = path.read_text()
    other = _session(tmp_path, StubWorld(weights="bb" * 32))
    other.advance(press(Command.LOAD))
    assert "another world or other weights" in other.messages[-1]
    for text, reason in [
        (good[:40], "broken"),
        (good.replace('"schema": 1', '"schema": 9'), "newer"),
        (good.replace('"seed": 5', '"seed": "x"'), "seed"),
        (good.replace('"actions": [', '"actions": [[99, 1],'), "actions"),
    ]:
        path.write_text(text)
        fresh = _session(tmp_path)
        fresh.advance(press(Command.LOAD))
        assert reason in fresh.messages[-1], text
        assert fresh.mode == Mode.PLAYING


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="permissions do not bind this user")
def test_a_read_only_folder_is_a_message(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    session = _session(tmp_path)
    session.advance(press(Command.SAVE))
    assert "could not be saved" in session.messages[-1]


def test_players_take_turns_and_a_list_hands_back() -> None:
    world = StubWorld()
    others = (lambda seed: RandomPlayer(ACTIONS, seed), lambda seed: Listed("script", [LEFT] * 5))
    session = Session(world, others=others)
    session.begin()
    names = []
    for _ in range(3):
        session.advance(press(Command.PLAYER))
        names.append(session.player.name)
    assert names == ["random", "script", "you"]
    session.player = Listed("script", [LEFT] * 5)
    for _ in range(3):
        session.advance(Input(FORWARD))
    assert session.history is not None
    assert list(session.history.actions)[-3:] == [LEFT, LEFT, FORWARD]
    assert session.player.name == "you"


SCRIPT = [1, 2, 3, 4, 5, 6]


def _scripted(ticks: int) -> Session:
    session = Session(
        StubWorld(), Listed("script", SCRIPT), others=(lambda seed: RandomPlayer(ACTIONS, seed),)
    )
    session.begin(seed=5)
    for _ in range(ticks):
        session.advance(Input())
    return session


def _actions(session: Session) -> list[int]:
    assert session.history is not None
    return list(session.history.actions)


def test_who_rewinds_takes_the_script_back_with_the_time() -> None:
    session = _scripted(4)
    for _ in range(3):
        session.advance(REWIND)
    assert session.tick == 1
    for _ in range(3):
        session.advance(Input())
    assert _actions(session) == SCRIPT[:4]


def test_a_new_start_begins_the_script_again() -> None:
    session = _scripted(4)
    session.advance(press(Command.RESTART))
    session.advance(Input())
    assert _actions(session) == SCRIPT[:2]


def test_the_script_that_began_gets_its_turn_again() -> None:
    session = _scripted(1)
    names = []
    for _ in range(3):
        session.advance(press(Command.PLAYER, action=0))
        names.append(session.player.name)
    assert names == ["random", "you", "script"]
    session.advance(Input())
    assert _actions(session)[3:] == SCRIPT[3:5]


def test_a_screenshot_has_its_moment_beside_it(tmp_path: Path) -> None:
    session = Session(StubWorld(), screenshots=tmp_path)
    session.begin(seed=2)
    _walk(session, 3)
    session.advance(press(Command.PAUSE))
    session.advance(press(Command.SCREENSHOT))
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "stub-2-3.png")), session.frame.image)
    assert (tmp_path / "stub-2-3.json").exists()


STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["walk", "rewind", "pause", "advance", "save", "load", "restart", "fast", "slow", "quick", "half"]
        ),
        st.integers(1, 40),
    ),
    max_size=25,
)


@settings(max_examples=60, deadline=None)
@given(STEPS)
def test_any_sequence_of_commands_ends_in_an_honest_moment(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]]
) -> None:
    session = _session(tmp_path_factory.mktemp("slots"))
    one = {
        "pause": press(Command.PAUSE),
        "advance": press(Command.ADVANCE, action=FORWARD),
        "save": press(Command.SAVE),
        "load": press(Command.LOAD),
        "restart": press(Command.RESTART),
        "slow": press(Command.SLOWER),
        "quick": press(Command.FASTER),
    }
    for kind, count in steps:
        if kind == "half":
            session.paint_every = 3 - session.paint_every
        elif kind in one:
            session.advance(one[kind])
        else:
            asked = {"walk": Input(count % 7), "rewind": REWIND, "fast": hold(Command.FAST_FORWARD)}[kind]
            for _ in range(count):
                session.advance(asked)
    session.advance(Input(0))
    assert session.history is not None
    assert session.tick == session.history.tick
    assert _state(session) == _recomputed(session)
    assert session.frame.painted().image[0, 0, 1] == session.tick % 256


def test_read_only_error_is_a_data_error() -> None:
    world = StubWorld()
    with pytest.raises(DataError, match="empty"):
        Slots(Path("nowhere"), world).load(3)


def test_screenshots_of_two_ways_to_one_tick_are_two(tmp_path: Path) -> None:
    session = Session(StubWorld(), screenshots=tmp_path)
    session.begin(seed=3)
    session.advance(press(Command.SCREENSHOT))
    session.begin(seed=3)
    session.advance(press(Command.SCREENSHOT))
    assert {p.suffix for p in tmp_path.iterdir()} == {".png", ".json"} and len(list(tmp_path.iterdir())) == 4


def test_the_number_pad_chooses_slots(tmp_path: Path) -> None:
    session = _session(tmp_path)
    session.advance(press(Command.SLOT, "[7]"))
    assert session.slot == 7


@pytest.mark.parametrize("failing", ["write_atomic", "write_json"])
def test_a_save_that_fails_leaves_the_slot_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    session = _session(tmp_path, PackingWorld())
    session.advance(press(Command.SAVE))
    before = {p.name: p.read_bytes() for p in (tmp_path / "stub").iterdir()}
    _walk(session, 5)

    def full(*_: object) -> None:
        raise DataError("the disk is full")

    with monkeypatch.context() as broken:
        broken.setattr(f"game.slots.{failing}", full)
        session.advance(press(Command.SAVE))
    assert "the disk is full" in session.messages[-1]
    assert {p.name: p.read_bytes() for p in (tmp_path / "stub").iterdir()} == before
    session.advance(press(Command.SAVE))
    assert len(list((tmp_path / "stub").iterdir())) == 2, "the state of what is overwritten must go"
