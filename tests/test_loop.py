"""The loop on a fake clock and a fake front end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from game.budget import Governor, Level
from game.clock import Clock
from game.keys import Command, Input
from game.loop import HudState, Loop, Summary
from game.recorder import SessionLog
from game.replay import read_recording, replay
from game.session import Session
from stub_world import FakeFront, FakeTime, StubWorld, hold, press
from world_model.types import Frame


def _run(front: FakeFront, world: StubWorld | None = None, **more: object) -> tuple[Loop, Summary]:
    time = FakeTime()
    session = Session(world or StubWorld())
    session.begin(seed=3)
    loop = Loop(session, front, Clock(time=time, sleep=time.sleep), **more)  # type: ignore[arg-type]
    return loop, loop.run()


def test_scripted_keys_give_the_frames_of_the_world_alone() -> None:
    actions = [int(a) for a in np.random.default_rng(0).integers(0, 7, 200)]
    front = FakeFront([Input(a) for a in actions])
    _run(front)
    world = StubWorld()
    world.reset(seed=3)
    for shown, action in zip(front.shown, actions, strict=True):
        np.testing.assert_array_equal(shown.image, world.step(action).image)


def test_the_picture_of_a_tick_contains_its_action() -> None:
    actions = [1, 4, 0, 2, 6]
    front = FakeFront([Input(a) for a in actions])
    _run(front)
    assert [int(frame.image[0, 0, 0]) for frame in front.shown] == actions


def test_a_plain_environment_without_states_can_be_played() -> None:
    class Plain:
        def __init__(self) -> None:
            self._world = StubWorld()
            self.actions, self.info = self._world.actions, self._world.info
            self.reset, self.step = self._world.reset, self._world.step

    front = FakeFront([Input(1), hold(Command.REWIND), press(Command.REWIND), press(Command.SAVE), Input(2)])
    loop, _ = _run(front, Plain())  # type: ignore[arg-type]
    assert loop.session.tick == 5


def test_order_is_wait_poll_step_draw_flip() -> None:
    events: list[str] = []
    time = FakeTime()
    front = FakeFront([Input(1), Input(1)])
    front.events = events
    world = StubWorld()
    step = world.step

    def noted(action: int) -> Frame:
        events.append("step")
        return step(action)

    world.step = noted  # type: ignore[method-assign]

    class Waiting(Clock):
        def wait(self) -> float:
            events.append("wait")
            return super().wait()

    session = Session(world)
    session.begin()
    Loop(session, front, Waiting(time=time, sleep=time.sleep)).run()
    assert events[:10] == ["wait", "poll", "step", "draw", "flip"] * 2


def test_a_paused_loop_still_waits() -> None:
    time = FakeTime()
    session = Session(StubWorld())
    session.begin()
    front = FakeFront([press(Command.PAUSE)] + [Input(1)] * 50)
    Loop(session, front, Clock(time=time, sleep=time.sleep)).run()
    assert session.tick == 0
    assert time.now - 100 == pytest.approx(51 * 0.04, rel=0.01)


def test_the_summary_has_every_section() -> None:
    loop, summary = _run(FakeFront([Input(1)] * 30))
    text = "\n".join(summary.lines())
    for name in ("poll", "trunk", "head", "decode", "world", "draw", "present", "tick", "latency"):
        assert f"\n{name} " in text
    assert summary.ticks == 30
    assert loop.hud.fps == pytest.approx(25, rel=0.05) or summary.ticks < 33


def test_latency_is_a_tick_and_the_work() -> None:
    time = FakeTime()
    world = StubWorld()
    step = world.step

    def slow(action: int) -> Frame:
        time.spend(0.015)
        return step(action)

    world.step = slow  # type: ignore[method-assign]
    session = Session(world)
    session.begin()
    loop = Loop(session, FakeFront([Input(1)] * 50), Clock(time=time, sleep=time.sleep))
    assert loop.run().latency.summary()["p95"] == pytest.approx(55, rel=0.02)


def test_quitting_ends_before_another_step() -> None:
    loop, summary = _run(FakeFront([Input(1), press(Command.QUIT)]))
    assert (summary.ticks, loop.session.tick) == (1, 1)
    assert loop.leaving == Command.QUIT


def test_overload_slows_the_clock_and_not_the_world() -> None:
    time = FakeTime()
    world = StubWorld()
    step = world.step

    def slow(action: int, paint: bool = True) -> Frame:
        time.spend(0.06)
        return step(action, paint)

    world.step = slow  # type: ignore[method-assign]
    session = Session(world)
    session.begin()
    front = FakeFront([Input(1)] * 200)
    loop = Loop(session, front, Clock(time=time, sleep=time.sleep), Governor())
    loop.run()
    assert loop.hud.level == Level.SLOW_MOTION
    assert loop.hud.slowed == pytest.approx(40 / 66, rel=0.02)
    assert session.tick == 200
    ticks = [frame.info.tick for frame in front.shown]
    assert ticks[:30] == list(range(1, 31))
    assert ticks[40:] == list(range(ticks[40], 201, 2)), "every second picture is still left out"


def _hashes_of(actions: int, seed: int = 3) -> list[str]:
    world = StubWorld()
    world.reset(seed)
    return [(world.step(1), world.snapshot().hash())[1] for _ in range(actions)]


def test_pictures_that_do_not_fit_are_left_out_and_the_dream_is_the_same(tmp_path: Path) -> None:
    time = FakeTime()
    world = StubWorld()
    step = world.step
    hashes: list[str] = []

    def dear(action: int, paint: bool = True) -> Frame:
        time.spend(0.044 if paint else 0.028)
        frame = step(action, paint)
        hashes.append(world.snapshot().hash())
        return frame

    world.step = dear  # type: ignore[method-assign]
    log = SessionLog(tmp_path / "log", world)
    session = Session(world, logs=[log])
    session.begin(seed=3)
    front = FakeFront([Input(1)] * 600)
    loop = Loop(session, front, Clock(time=time, sleep=time.sleep), Governor())
    loop.run()
    log.close()
    assert (loop.hud.level, loop.hud.slowed) == (Level.HALF_PICTURES, 1.0)
    assert hashes == _hashes_of(600)
    assert world.painted < 340
    assert all(frame.info.painted for frame in front.shown)
    # Shown is the picture of the tick it belongs to, and the time is that of 25 ticks a second.
    assert all(frame.image[0, 0, 1] == frame.info.tick % 256 for frame in front.shown)
    assert time.now - 100 == pytest.approx(600 * 0.04, rel=0.02)
    assert replay(read_recording(tmp_path / "log"), StubWorld()) == (600, None)


def test_a_key_may_wait_a_tick_longer_for_its_picture_and_the_figure_says_so() -> None:
    time = FakeTime()
    session = Session(StubWorld())
    session.begin()
    session.paint_every = 2
    loop = Loop(session, FakeFront([Input(1)] * 100), Clock(time=time, sleep=time.sleep))
    assert loop.run().latency.summary()["p95"] == pytest.approx(80, rel=0.02)


def test_a_pause_shows_the_picture_of_its_own_tick() -> None:
    session = Session(StubWorld())
    session.begin()
    session.paint_every = 2
    front = FakeFront([Input(1)] * 7 + [press(Command.PAUSE)] + [Input(1)] * 3)
    time = FakeTime()
    Loop(session, front, Clock(time=time, sleep=time.sleep)).run()
    assert [frame.image[0, 0, 1] for frame in front.shown] == [2, 4, 6, 7, 7, 7, 7]


def test_messages_are_shown_for_a_while() -> None:
    loop, _ = _run(FakeFront([press(Command.SLOWER), Input(0)]))
    assert loop.hud.message == "speed 50 %"
    loop, _ = _run(FakeFront([press(Command.SLOWER)] + [Input(0)] * 80))
    assert loop.hud.message == ""


class Noting(FakeFront):
    """Keeps the message of each picture."""

    def __init__(self, script: list[Input]) -> None:
        super().__init__(script)
        self.messages: list[str] = []

    def draw(self, frame: Frame, hud: HudState) -> None:
        super().draw(frame, hud)
        self.messages.append(hud.message)


def test_of_several_messages_each_can_be_read() -> None:
    both = Input(0, ((Command.SLOWER, ""), (Command.SLOWER, "")))
    front = Noting([both] + [Input(0)] * 120)
    _run(front)
    assert front.messages.count("speed 50 %") == 30
    assert front.messages.count("speed 25 %") == 60


def test_the_figures_have_stalls_parts_and_memory() -> None:
    loop, summary = _run(FakeFront([Input(1)] * 30))
    assert loop.hud.longest_stall == pytest.approx(40, rel=0.02)
    assert (loop.hud.parts["trunk"], loop.hud.parts["head"], loop.hud.parts["decode"]) == (3.0, 2.0, 1.0)
    assert "tick" not in loop.hud.parts and "world" not in loop.hud.parts
    assert loop.hud.memory > 10
    assert f" {summary.memory:.0f} MB" in summary.lines()[0]


def test_a_loop_that_was_left_goes_on_and_the_time_between_does_not_count() -> None:
    time = FakeTime()
    session = Session(StubWorld())
    session.begin()
    front = FakeFront([Input(1)] * 10 + [press(Command.PICKER)] + [Input(1)] * 10)
    loop = Loop(session, front, Clock(time=time, sleep=time.sleep))
    loop.run()
    assert (loop.leaving, session.tick) == (Command.PICKER, 10)
    time.spend(60)
    summary = loop.run()
    assert (loop.leaving, session.tick, summary.ticks) == (Command.QUIT, 20, 20)
    assert (summary.missed, summary.seconds) == (0, pytest.approx(20 * 0.04, abs=0.1))
    assert summary.longest_stall < 0.05 and summary.latency.max < 100
