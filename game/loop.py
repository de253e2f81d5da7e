"""Wait, poll, step, draw the new frame, flip. Knows no window: a front end does the showing.

The picture shown at a tick contains the action sampled in that tick, because polling comes after the wait
and drawing after the step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from game.budget import Governor, Level
from game.clock import Clock, Percentiles, Sections
from game.keys import Command, Input
from game.machine import rss_mb
from game.session import Mode, Session
from game.sound import Sound
from game.speaker import COMMANDS, Speaker
from game.video import LiveFilm
from world_model.types import FPS, Frame, ReverieError

HUD_EVERY = 8
"""Ticks between new figures on the screen: faster ones cannot be read."""

MESSAGE_TICKS = 60
"""Ticks that a notice shows. Where others wait it has a part of that: half for one, a third for two."""

WHOLES = frozenset({"tick", "step", "world"})
"""Sections that consist of others."""


@dataclass
class HudState:
    """What can be shown besides the picture. Times in milliseconds."""

    world: str = ""
    player: str = "you"
    mode: str = "playing"
    speed: float = 1.0
    seed: int = 0
    tick: int = 0
    slot: int = 1
    fps: float = 0.0
    work: dict[str, float] = field(default_factory=dict)
    """p50, p95, p99 of a tick's work."""
    parts: dict[str, float] = field(default_factory=dict)
    """What the work consists of: the median of the last ticks by section."""
    memory: float = 0.0
    """MB that the program takes."""
    missed: int = 0
    longest_stall: float = 0.0
    latency: float = 0.0
    """p95 of the longest way from a key to the screen: pressed just after one poll, shown after the next."""
    level: Level = Level.FULL
    slowed: float = 1.0
    """Below 1: the machine cannot keep up, and time goes this much slower."""
    window: tuple[int, int] = (0, 0)
    """Frames in the sliding window, and how many fit."""
    keyframes: Sequence[Any] = ()
    attended: tuple[int, ...] = ()
    recall_left: int = 0
    message: str = ""
    filming: bool = False
    over: bool = False
    status: str = ""
    """What the world says about itself, as a twin's PSNR."""
    captions: Sequence[tuple[float, float, str]] = ()
    """Texts on the picture: left and top edge of a quarter (shares of the picture), text."""


class FrontEnd(Protocol):
    """A window, or what stands for one in tests."""

    def poll(self) -> Input: ...
    def draw(self, frame: Frame, hud: HudState) -> None: ...
    def flip(self) -> None: ...
    def close(self) -> None: ...


@dataclass
class Summary:
    """What is said when the session ends."""

    ticks: int
    sections: Sections
    latency: Percentiles
    missed: int
    longest_stall: float
    seconds: float
    notes: list[str] = field(default_factory=list)
    """What else is to be said, as where an episode was kept."""
    memory: float = 0.0
    """MB that the program took at the end; 0 where that is not known."""
    interrupted: bool = False
    """Ctrl-C ended it."""

    def lines(self) -> list[str]:
        """A small table for people."""
        rate = self.ticks / self.seconds if self.seconds > 0 else 0.0
        stall = 1e3 * self.longest_stall
        memory = f", {self.memory:.0f} MB" if self.memory else ""
        rows = [
            f"{self.ticks} ticks in {self.seconds:.1f} s ({rate:.2f} a second), "
            f"{self.missed} deadlines missed, longest stall {stall:.0f} ms{memory}",
            f"{'ms':<10}{'p50':>8}{'p95':>8}{'p99':>8}{'max':>8}   (percentiles of the last minute)",
        ]
        for name, stats in [*self.sections.stats.items(), ("latency", self.latency)]:
            p = stats.summary()
            rows.append(f"{name:<10}{p['p50']:8.2f}{p['p95']:8.2f}{p['p99']:8.2f}{stats.max:8.2f}")
        return rows + self.notes


class Loop:
    """Runs a session on a front end until it is asked to quit."""

    def __init__(
        self,
        session: Session,
        front: FrontEnd,
        clock: Clock,
        governor: Governor | None = None,
        film: Callable[[], LiveFilm] | None = None,
        speaker: Speaker | None = None,
    ) -> None:
        """`film` begins a new film, for the key that asks for one. Without a speaker nothing is heard."""
        self.session, self.front, self.clock, self.governor = session, front, clock, governor
        self.sections = Sections(clock.now)
        self._new_film = film
        self.speaker = speaker or Speaker(session.messages.append)
        self.film: LiveFilm | None = None
        self.latency = Percentiles()
        self.hud = HudState()
        self._ticks, self._seconds = 0, 0.0
        self._polled: float | None = None
        self._unseen: float | None = None
        """The poll after which a key may have been pressed that no picture shows yet."""
        self._fps_mark = (0.0, 0)
        self._message_left = 0
        self._counted: dict[str, float] | None = None
        self.leaving = Command.QUIT
        """What ended the loop: QUIT, PICKER for another world, or TWIN for the real game beside it."""
        self.notes: list[str] = []
        """What is to be said when all has ended: films."""

    def run(self, ticks: int | None = None) -> Summary:
        """`ticks` bounds the ticks of the clock. The session has begun before.

        A loop that was left can be run again, and goes on; what lay between is not counted.
        """
        self.clock.rest()
        self._polled = self._unseen = None
        began, self._fps_mark, self.leaving = self.clock.now(), (0.0, self._ticks), Command.QUIT
        try:
            while ticks is None or self._ticks < ticks:
                if not self._tick():
                    break
        finally:
            self._seconds += self.clock.now() - began
            self.speaker.hear(self.session.frame, self.session.tick, running=False)
        return self.summary()

    def summary(self) -> Summary:
        """Of all ticks so far."""
        figures = (self.sections, self.latency, self.clock.missed, self.clock.longest_stall)
        return Summary(self._ticks, *figures, self._seconds, list(self.notes), rss_mb())

    def close(self) -> None:
        """Ends a film that is still running."""
        self._end_film()

    def _tick(self) -> bool:
        """One tick of the clock; whether to go on."""
        self.clock.wait()
        woke = self.clock.now()
        with self.sections.measure("poll"):
            asked = self.front.poll()
        self._unseen = self._unseen or self._polled
        self._polled = self.clock.now()
        for command in (Command.QUIT, Command.PICKER, Command.TWIN):
            if asked.asks(command):
                self.leaving = command
                return False
        with self.sections.measure("step"):
            frame = self.session.advance(asked)
        self._count_world(frame)
        with self.sections.measure("speaker"):
            sound = self._hear(frame, asked)
        self._film(frame, sound, asked.asks(Command.VIDEO))
        self._update_hud(frame)
        if frame.info.painted:  # else the screen shows the picture before, and goes on to
            self._show(frame)
        self._end_tick(woke, frame.info.painted)
        return True

    def _show(self, frame: Frame) -> None:
        with self.sections.measure("draw"):
            self.front.draw(frame, self.hud)
        with self.sections.measure("present"):
            self.front.flip()
        if self._unseen is not None:
            self.latency.add(1e3 * (self.clock.now() - self._unseen))
            self._unseen = None

    def _hear(self, frame: Frame, asked: Input) -> Sound | None:
        """Lets the tick be heard; returns what that was."""
        session = self.session
        running = session.mode == Mode.PLAYING and not session.fast
        for command in COMMANDS:
            if asked.asks(command):
                self.speaker.obey(command)
        return self.speaker.hear(frame, session.tick, running, session.speed, self.hud.slowed)

    def _film(self, frame: Frame, sound: Sound | None, toggle: bool) -> None:
        """Begins or ends a film where asked, and hands picture and sound to one that runs."""
        if toggle and self.film is not None:
            self._end_film()
        elif toggle and self._new_film is not None:
            try:
                self.film = self._new_film()
                self.session.messages.append(f"filming to {self.film.path}")
            except ReverieError as err:
                self.session.messages.append(str(err))
        if self.film is not None:
            with self.sections.measure("film"):
                self.film.show(frame, sound)
            if self.film.error:
                self._end_film()
        self.hud.filming = self.film is not None

    def _end_film(self) -> None:
        if self.film is not None:
            film, self.film = self.film, None
            film.close()
            said = film.error or f"film saved: {film.path}"
            self.session.messages.append(said)
            self.notes.append(said)

    def _count_world(self, frame: Frame) -> None:
        """The world's own sections, once for each new frame. They are parts of the step just measured."""
        if frame.info.ms is not self._counted:
            self._counted = frame.info.ms
            began, end = self.sections.span
            self.sections.add_parts({n: ms for n, ms in frame.info.ms.items() if n != "total"})
            if "total" in frame.info.ms:
                total = frame.info.ms["total"]
                self.sections.add("world", total, (began, min(began + total / 1e3, end)))

    def _end_tick(self, woke: float, painted: bool) -> None:
        now = self.clock.now()
        work, self._ticks = 1e3 * (now - woke), self._ticks + 1
        self.sections.add("tick", work, (woke, now))
        if self.governor is not None and not self.session.fast:
            self.hud.level = self.governor.observe(work, painted)
            self.session.paint_every = self.governor.paint_every
            self.clock.period = self.governor.period_ms / 1e3
            self.hud.slowed = self.governor.budget_ms / self.governor.period_ms

    def _update_hud(self, frame: Frame) -> None:
        hud, session = self.hud, self.session
        hud.mode, hud.speed, hud.player = session.mode.value, session.speed, session.player.name
        hud.seed, hud.tick, hud.slot = session.seed, session.tick, session.slot
        hud.over = frame.info.over
        hud.attended, hud.recall_left = frame.info.attended, session.recall_left
        if session.fast and session.mode == "playing":
            hud.mode = "fast forward"
        self._next_message()
        if self._ticks % HUD_EVERY == 0:
            self._update_figures()

    def _update_figures(self) -> None:
        hud, now = self.hud, self.clock.now()
        since, at = self._fps_mark
        if since == 0.0:
            self._fps_mark = (now, self._ticks)
        elif now > since and self._ticks - at >= FPS:
            hud.fps = (self._ticks - at) / (now - since)
            self._fps_mark = (now, self._ticks)
        hud.work = self.sections.stats["tick"].summary() if "tick" in self.sections.stats else {}
        hud.parts = {n: stats.recent() for n, stats in self.sections.stats.items() if n not in WHOLES}
        hud.memory = rss_mb()
        hud.latency = self.latency.summary()["p95"]
        hud.missed, hud.longest_stall = self.clock.missed, 1e3 * self.clock.longest_stall
        hud.status = getattr(self.session.world, "status", "")
        hud.captions = getattr(self.session.world, "captions", ())
        memory = getattr(self.session.world, "memory", None)
        if memory is not None:
            hud.window, hud.keyframes = (memory.window, memory.size), memory.keyframes

    def _next_message(self) -> None:
        for log in self.session.logs:
            error = getattr(log, "error", None)
            if error:
                self.session.messages.append(error)
                self.session.logs.remove(log)
                break
        self._message_left -= 1
        waiting = len(self.session.messages)
        if waiting and self._message_left <= MESSAGE_TICKS - MESSAGE_TICKS // (1 + waiting):
            self.hud.message, self._message_left = self.session.messages.popleft(), MESSAGE_TICKS
        elif self._message_left <= 0:
            self.hud.message = ""
