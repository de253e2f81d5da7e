"""What a long session costs: python -m tools.long_run MODE [options], from the top folder. Modes:

    paced      period, jitter, and the way from a key to the picture, beside a model of 15 ms
    unpaced    memory over many ticks of a world, and whether the last ticks are slower than the first
    aged       whether a tick costs more after many: a session that has played so many beside a young one
    rewind     memory of five minutes that can be gone back to, and of going back
    overhead   everything of a tick but the model, in a window of 1280 x 800 by the current SDL driver

`unpaced`, `aged` and `rewind` play a world of that name; `--world stub` is one without weights. A table for
people, then one JSON document as the last line.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from game.clock import Clock, FreeClock
from game.keys import Command, Input, default_bindings
from game.loop import HudState, Loop
from game.machine import describe_machine, rss_mb
from game.options import Options
from game.recorder import SessionLog
from game.session import Session
from game.sitting import make_session
from world_model.state import Keyframe, Memory
from world_model.types import FPS, Action, Frame, FrameInfo, Image, ReverieError, WorldInfo

PERIOD_MS = 1000 / FPS
STATE_BYTES = 3_340_000
"""A state of `rooms`."""


@dataclass(frozen=True)
class StubState:
    """As many bytes as a real state, so that memory is measured and not only counted."""

    tick: int
    data: Image

    @property
    def nbytes(self) -> int:
        return self.data.nbytes

    def hash(self) -> str:
        return f"{self.tick:064x}"


class Stub:
    """A world that spends `ms` a step and shows moving stripes; it keeps states of `state_bytes`."""

    actions = (
        Action("idle"),
        Action("forward", ("up",)),
        Action("left", ("left",)),
        Action("right", ("right",)),
    )

    def __init__(self, ms: float = 0.0, state_bytes: int = 1000) -> None:
        self.info = WorldInfo("stub", 256, 160, FPS, 0, (), "MIT", {}, {}, "00" * 32, "cpu-stub-1")
        self._ms, self._bytes = ms, state_bytes
        rows, columns = np.mgrid[:160, :256]
        waves = np.stack([(rows + columns * k) % 256 for k in (1, 2, 3)], -1)
        self._stripes = [((waves + 5 * t) % 256).astype(np.uint8) for t in range(50)]
        self._thumbnails = [stripes[::4, ::4].copy() for stripes in self._stripes[:32]]
        self._state = self._at(0)

    def reset(self, seed: int = 0, scene: str | None = None) -> Frame:
        self._state = self._at(0)
        return self.paint()

    def step(self, action: int, paint: bool = True) -> Frame:
        began = time.perf_counter()
        self._state = self._at(self._state.tick + 1)
        while 1e3 * (time.perf_counter() - began) < self._ms:
            pass
        return self._frame({"total": 1e3 * (time.perf_counter() - began)})

    def paint(self, state: StubState | None = None) -> Frame:
        return self._frame({})

    def snapshot(self) -> StubState:
        return self._state

    def restore(self, state: StubState) -> None:
        self._state = state

    @property
    def memory(self) -> Memory:
        tick = self._state.tick
        held = tuple(Keyframe(t, tick + 40 * i, i) for i, t in enumerate(self._thumbnails))
        return Memory(min(tick, 16), 16, held)

    def _at(self, tick: int) -> StubState:
        return StubState(tick, np.full(self._bytes, tick % 251, np.uint8))

    def _frame(self, ms: dict[str, float]) -> Frame:
        tick = self._state.tick
        return Frame(self._stripes[tick % 50].copy(), None, FrameInfo(tick, ms, (tick // 25 % 32,)))


class NoFront:
    """Nobody at the keys and no window; `watch` is called with the number of each tick."""

    def __init__(self, watch: Callable[[int], None]) -> None:
        self._watch, self._tick = watch, 0

    def poll(self) -> Input:
        self._watch(self._tick)
        self._tick += 1
        return Input()

    def draw(self, frame: Frame, hud: HudState) -> None: ...
    def flip(self) -> None: ...
    def close(self) -> None: ...


class Player(NoFront):
    """The same, who begins anew where it is over."""

    def __init__(self, session: Session, watch: Callable[[int], None] = lambda tick: None) -> None:
        super().__init__(watch)
        self._session = session

    def poll(self) -> Input:
        asked = super().poll()
        again = ((Command.RESTART, ""),) if self._session.frame.info.over else ()
        return replace(asked, commands=again)


class Watch(Loop):
    """A loop that keeps what each tick cost, in arrays that are there from the beginning."""

    def __init__(self, session: Session, front: Any, clock: Clock, ticks: int) -> None:
        super().__init__(session, front, clock)
        self.work, self.model = np.full(ticks, -1.0), np.full(ticks, -1.0)
        self.imagining = np.zeros(ticks, dtype=bool)

    def _end_tick(self, woke: float, painted: bool) -> None:
        at = self._ticks
        super()._end_tick(woke, painted)
        self.work[at] = self.sections.last["tick"]
        self.model[at] = self.session.frame.info.ms.get("total", 0.0)
        self.imagining[at] = "imagine" in self.session.frame.info.ms

    def block(self, ticks: int) -> NDArray[np.float64]:
        """Plays up to `ticks`: what each of these ticks cost, and whether something was made up in it."""
        since = self._ticks
        self.run(ticks)
        return np.stack((self.work[since:ticks], self.imagining[since:ticks]))


@contextmanager
def _playing(options: Options, world: Any) -> Iterator[Session]:
    """A session as `play` makes it, with its log, in a home of its own."""
    with tempfile.TemporaryDirectory() as home:
        session = make_session(replace(options, home=Path(home)), world)
        yield session
        for log in session.logs:
            if isinstance(log, SessionLog):
                log.close()


def in_window(ticks: int, ms: float, paced: bool = True) -> dict[str, Any]:
    """Plays in a real window with figures and memory strip shown and everything recorded."""
    from game.window import SIZE, Window, sdl_driver

    driver = sdl_driver()
    window = Window(default_bindings(Stub.actions), Stub.actions)
    window.memory = True
    at: list[float] = []
    poll = window.poll

    def timed() -> Input:
        at.append(time.perf_counter())
        return poll()

    window.poll = timed  # type: ignore[method-assign]
    try:
        with _playing(Options("stub"), Stub(ms)) as session:
            loop = Watch(session, window, Clock() if paced else FreeClock(), ticks)
            longest = _kept(loop)
            loop.run(ticks)
    finally:
        window.close()
    periods = 1e3 * np.diff(at)
    overhead = loop.work - loop.model
    return {
        "driver": driver,
        "size": list(SIZE),
        "ticks": ticks,
        "model_ms": ms,
        "overhead_ms": _percentiles(overhead[FPS:]),
        "sections_ms": {name: stats.summary() for name, stats in loop.sections.stats.items()},
        "period_ms": _percentiles(periods),
        "mean_period_error": float(abs(periods.mean() / PERIOD_MS - 1)) if paced else None,
        "key_to_picture_at_most_ms": loop.latency.summary(),
        "key_to_picture_ms": _percentiles(_random_presses(np.array(longest), periods)),
        "missed": loop.clock.missed,
    }


def _kept(loop: Loop) -> list[float]:
    """The longest way of each tick from key to picture, ms: of a key pressed just after the poll before."""
    kept: list[float] = []
    add = loop.latency.add

    def keep(value: float) -> None:
        kept.append(value)
        add(value)

    loop.latency.add = keep  # type: ignore[method-assign]
    return kept


def _random_presses(longest: NDArray[np.float64], periods: NDArray[np.float64]) -> NDArray[np.float64]:
    """The ways of keys that are pressed at any moment between two polls, one a tick."""
    count = min(len(longest), len(periods))
    return longest[-count:] - np.random.default_rng(0).random(count) * periods[-count:]


def unpaced(world: Any, ticks: int, warmup: int) -> dict[str, Any]:
    """Plays without waiting. `warmup` ticks fill what is bounded, as the history, and are not counted."""
    every = max(ticks // 1000, 1)
    memory: list[tuple[int, float]] = []

    def watch(tick: int) -> None:
        if tick >= warmup and (tick - warmup) % every == 0:
            memory.append((tick - warmup, rss_mb()))

    with _playing(Options("world", player="wander"), world) as session:
        loop = Watch(session, Player(session, watch), FreeClock(), warmup + ticks)
        loop.run(warmup + ticks)
    work = loop.work[warmup:]
    first, last = work[: max(ticks // 10, 1)], work[-max(ticks // 10, 1) :]
    at, mb = np.array(memory).T
    slope = float(np.polyfit(at, mb, 1)[0] * 10_000) if len(at) > 1 else 0.0
    return {
        "world": world.info.name,
        "ticks": ticks,
        "warmup": warmup,
        "ms": _percentiles(work),
        "p99_first_tenth": float(np.percentile(first, 99)),
        "p99_last_tenth": float(np.percentile(last, 99)),
        "p99_ratio": float(np.percentile(last, 99) / np.percentile(first, 99)),
        "rss_mb": [round(float(m), 1) for m in mb[:: max(len(mb) // 10, 1)]],
        "mb_per_10000_ticks": slope,
    }


YOUNG, BLOCK, BLOCKS = 500, 25, 80
"""Ticks that a young session has played, ticks of a block, blocks of each session."""


def aged(load: Callable[[], Any], ticks: int, young: int = YOUNG, blocks: int = BLOCKS) -> dict[str, Any]:
    """Compares a session that has played `ticks` of a world with two that have played `young`.

    Each makes its world by `load`, which must be picklable. The three take turns, a block each, and the
    others rest: what the machine does beside them, which may change by a fifth within minutes, meets all
    alike. Each is a process of its own begun in the same way, since the one that begins the others costs
    some hundredths more for the same ticks. One of the young begins before the old one and one after:
    `young_ratio` is that of the first by the second. `ratio` is that of ticks alike, the old session's by
    both: such in which something is made up cost more, and how many of these there are hangs on where a
    session is, not on its age. `ratio_of_all` tells of all of them as they came. Raises ReverieError where
    a session breaks off.
    """
    sessions = [_OnDemand(load, age, blocks) for age in (young, ticks, young)]
    rounds = [[session.block() for session in sessions] for _ in range(blocks)]
    rss = [session.end() for session in sessions]
    before, old, after = (np.stack(blocks_of, 1) for blocks_of in zip(*rounds, strict=True))
    new = np.concatenate((before, after), -1)
    picks = np.random.default_rng(0).integers(0, blocks, (1000, blocks))
    ratio, ratios = _alike(new, old), [_alike(new[:, pick], old[:, pick]) for pick in picks]
    (new, young_imagining), (now, imagining) = new, old
    return {
        "ticks": ticks,
        "young_ticks": young,
        "ms": _percentiles(now.ravel()),
        "young_ms": _percentiles(new.ravel()),
        "imagining": round(float(imagining.mean()), 4),
        "young_imagining": round(float(young_imagining.mean()), 4),
        "ratio": round(ratio, 4),
        "ratio_95": [round(float(q), 4) for q in np.percentile(ratios, (2.5, 97.5))],
        "young_ratio": round(_alike(after, before), 4),
        "ratio_of_each": [round(_alike(other, old), 4) for other in (before, after)],
        "ratio_of_all": round(float(now.mean() / new.mean()), 4),
        "rss_mb": round(rss[1], 1),
    }


class _OnDemand:
    """A session in a process of its own, which plays a block whenever it is asked to."""

    def __init__(self, load: Callable[[], Any], ticks: int, blocks: int) -> None:
        """Waits until it has played `ticks`."""
        context = multiprocessing.get_context("spawn")
        self._pipe, there = context.Pipe()
        how = (load, ticks, blocks, there)
        self._process = context.Process(target=_plays_on_demand, args=how, daemon=True)
        self._process.start()
        there.close()  # so that a process that died is an end of the pipe, not a wait for ever
        self._answer()

    def block(self) -> NDArray[np.float64]:
        played: NDArray[np.float64] = self._answer(asked=True)
        return played

    def end(self) -> float:
        """Its memory, MB. Waits until it has put away what it kept; it has played all its blocks."""
        rss: float = self._answer()
        self._process.join()
        return rss

    def _answer(self, asked: bool = False) -> Any:
        try:
            if asked:
                self._pipe.send(None)
            return self._pipe.recv()
        except (EOFError, OSError):
            raise ReverieError("a session of the comparison broke off; what it says stands above") from None


def _alike(young: NDArray[np.float64], old: NDArray[np.float64]) -> float:
    """How much more ticks cost in the old session than such of the same kind in the young one, (2, ...) each:
    milliseconds, and whether something was made up. Kinds that only one session has are left out, unless
    there are no others."""
    costs = [
        (kind.sum(), old[0][old[1] == which].mean() / young[0][kind].mean())
        for which in (0, 1)
        if (kind := young[1] == which).any() and (old[1] == which).any()
    ]
    if not costs:
        return float(old[0].mean() / young[0].mean())
    weights, ratios = zip(*costs, strict=True)
    return float(np.average(ratios, weights=weights))


def _plays_on_demand(load: Callable[[], Any], ticks: int, blocks: int, pipe: Connection) -> None:
    """Plays `ticks`, says so, plays a block whenever asked to: its milliseconds are the answer. At the end it
    tells how much memory it holds, MB."""
    with _playing(Options("world", player="wander"), load()) as session:
        loop = Watch(session, Player(session), FreeClock(), ticks + blocks * BLOCK)
        loop.run(ticks)
        pipe.send(None)
        for played in range(ticks, ticks + blocks * BLOCK, BLOCK):
            pipe.recv()
            pipe.send(loop.block(played + BLOCK))
        pipe.send(rss_mb())


def rewind(world: Any, ticks: int) -> dict[str, Any]:
    """Plays `ticks` and goes back to where it began; what that holds, and what the process grew by."""
    session = Session(world)
    session.begin(0)
    history = session.history
    assert history is not None
    for tick in range(FPS):
        session.advance(Input(tick % len(world.actions)))
    before = rss_mb()
    for tick in range(ticks):
        session.advance(Input(tick // 7 % len(world.actions)))
    played, counted = rss_mb(), history.nbytes
    back, grown = Input(held=frozenset({Command.REWIND})), played
    waits = 0
    while session.tick > max(history.floor, FPS) and waits < 10 * FPS:
        tick = session.tick
        session.advance(back)
        waits = 0 if session.tick < tick else waits + 1
        grown = max(grown, rss_mb()) if session.tick % FPS == 0 else grown
    return {
        "world": world.info.name,
        "ticks": ticks,
        "state_bytes": int(world.snapshot().nbytes),
        "reached_back_to": session.tick,
        "history_mb": counted / 1e6,
        "rss_mb_for_the_history": played - before,
        "rss_mb_at_most_while_going_back": grown - before,
    }


def _percentiles(values: Sequence[float] | np.ndarray[Any, Any]) -> dict[str, float]:
    if not len(values):
        return {}
    p50, p95, p99 = np.percentile(values, (50, 95, 99))
    numbers = {"mean": np.mean(values), "p50": p50, "p95": p95, "p99": p99, "max": np.max(values)}
    return {name: round(float(value), 4) for name, value in numbers.items()}


def _load(name: str) -> Any:
    if name == "stub":
        return Stub(state_bytes=STATE_BYTES)
    from world_model import load_world

    return load_world(name)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("mode", choices=("paced", "unpaced", "aged", "rewind", "overhead"))
    parser.add_argument("--minutes", type=float, default=None, help="paced: 10; rewind: 5; overhead: 1")
    parser.add_argument("--ticks", type=int, default=100_000, help="unpaced, aged")
    parser.add_argument("--warmup", type=int, default=10_000, help="unpaced")
    parser.add_argument("--world", default="rooms", help="unpaced, aged, rewind: a world's name, or stub")
    parser.add_argument("--model-ms", type=float, default=15.0, help="paced, overhead: what the stub spends")
    asked = parser.parse_args(arguments)
    minutes = asked.minutes or {"paced": 10.0, "rewind": 5.0, "overhead": 1.0}.get(asked.mode, 0.0)
    ticks = max(round(minutes * 60 * FPS), 2 * FPS)
    if asked.mode == "unpaced":
        result = unpaced(_load(asked.world), asked.ticks, asked.warmup)
    elif asked.mode == "aged":
        result = {"world": asked.world, **aged(partial(_load, asked.world), asked.ticks)}
    elif asked.mode == "rewind":
        result = rewind(_load(asked.world), ticks)
    else:
        result = in_window(ticks, asked.model_ms)
    result = {"benchmark": f"long_run {asked.mode}", **result, "machine": describe_machine()}
    for name, value in result.items():
        if name != "machine":
            print(f"{name:<34}{value}")
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    main()
