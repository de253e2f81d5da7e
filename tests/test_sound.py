"""From ticks to the loudspeaker: the queue between two clocks, what is heard when, devices, films."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from game import mixer
from game.clock import Clock
from game.export import export
from game.keys import Command, Input
from game.loop import Loop
from game.players import RandomPlayer
from game.recorder import LOG_NAME, SessionLog, record_rollout
from game.replay import read_recording, render, replay
from game.session import Session
from game.sound import CUSHION, Hearing, Pull, Sound, SoundQueue, SpeakerError, bend
from game.speaker import LOST_TICKS, MiniaudioDevice, Speaker
from game.video import LiveFilm, VideoWriter, sound_rate
from stub_world import ACTIONS, FakeFront, FakeTime, StubWorld, hold, press
from world_model.data.episodes import read_episode
from world_model.types import FPS, Frame

RATE, TICK = 22050, 882
TONE = 200.0
LOUD = 10000.0
STEEP = 1.2 * LOUD * 2 * np.pi * TONE / RATE + LOUD / 30
"""No two neighbouring samples of a tone may differ by more, however it breaks off: more is a click."""


def tone(first: int, count: int) -> Sound:
    at = np.arange(first, first + count)[:, None] * 2 * np.pi * TONE / RATE
    return np.repeat(LOUD * np.sin(at), 2, 1).astype(np.int16)


class SoundingWorld(StubWorld):
    """Each tick sounds of all that was done before it."""

    def __init__(self) -> None:
        super().__init__()
        self.info = replace(self.info, sound_rate=RATE)

    def _show(self, seed: int, scene: int, tick: int, action: int, digest: int, paint: bool = True) -> Frame:
        frame = super()._show(seed, scene, tick, action, digest, paint)
        self.audio = np.random.default_rng(digest).integers(-9000, 9000, (TICK, 2)).astype(np.int16)
        return replace(frame, audio=self.audio)


class FakeDevice:
    """Pulls when it is told that time has passed, at its own rate; `gone` stops it."""

    def __init__(self, pull: Pull, rate: int = RATE, drift: float = 0.0, period: float = 0.01) -> None:
        self._pull, self._rate, self._period = pull, rate * (1 + drift), period
        self._due = self._asked = 0.0
        self.played: list[Sound] = []
        self.gone = self.closed = False

    def run(self, seconds: float) -> None:
        self._due += seconds
        while self._asked + self._period <= self._due:
            count = round((self._asked + self._period) * self._rate) - round(self._asked * self._rate)
            self._asked += self._period
            if not self.gone:
                self.played.append(self._pull(count))

    def heard(self) -> NDArray[np.float64]:
        return np.concatenate(self.played)[:, 0].astype(np.float64)

    def close(self) -> None:
        self.closed = True


def _play(queue: SoundQueue, device: FakeDevice, ticks: int, first: int = 0) -> list[float]:
    """Pushes a tone tick by tick; what was in store at each."""
    stored = []
    for tick in range(first, first + ticks):
        queue.push(tone(tick * TICK, TICK))
        device.run(0.04)
        stored.append(queue.seconds)
    return stored


def _steepest(line: NDArray[np.float64]) -> float:
    return float(np.abs(np.diff(line)).max())


def test_what_is_pushed_is_heard_after_a_cushion_and_whole() -> None:
    queue = SoundQueue(RATE)
    device = FakeDevice(queue.pull)
    _play(queue, device, 50)
    heard = device.heard()
    began = int(np.flatnonzero(heard)[0])
    assert 0.05 < began / RATE < 0.13 and _steepest(heard) < STEEP
    steady = heard[began + 500 :]
    spectrum = np.abs(np.fft.rfft(steady * np.hanning(len(steady))))
    assert abs(np.argmax(spectrum) * RATE / len(steady) - TONE) < 2
    assert abs(np.abs(steady).max() - LOUD) < 0.01 * LOUD
    assert (queue.underruns, queue.overruns) == (0, 0)


@pytest.mark.parametrize("drift", [-0.003, -0.0002, 0.0, 0.0002, 0.003])
def test_a_device_of_another_rate_keeps_its_cushion(drift: float) -> None:
    queue = SoundQueue(RATE)
    device = FakeDevice(queue.pull, drift=drift)
    stored = _play(queue, device, 60 * FPS)
    kept = (
        np.mean(stored[10 * FPS :]) + 0.02
    )  # looked at just before the next push: half a tick more on average
    assert 0.08 <= kept <= 0.12
    assert (queue.underruns, queue.overruns) == (0, 0)
    assert _steepest(device.heard()) < STEEP


def test_a_stall_is_one_underrun_and_fades() -> None:
    queue = SoundQueue(RATE)
    device = FakeDevice(queue.pull)
    _play(queue, device, 25)
    device.run(0.4)
    assert queue.underruns == 1 and not device.played[-1].any()
    _play(queue, device, 25, first=25)
    assert queue.underruns == 1 and _steepest(device.heard()) < STEEP
    assert np.abs(device.heard()[-2000:]).max() > 0.9 * LOUD


def test_a_short_stall_is_not_heard() -> None:
    queue = SoundQueue(RATE)
    device = FakeDevice(queue.pull)
    _play(queue, device, 25)
    device.run(0.05)
    queue.push(tone(25 * TICK, TICK))
    _play(queue, device, 25, first=26)
    assert queue.underruns == 0


def test_a_device_that_stalls_runs_over_and_catches_up() -> None:
    queue = SoundQueue(RATE)
    device = FakeDevice(queue.pull)
    _play(queue, device, 25)
    for tick in range(25, 50):
        queue.push(tone(tick * TICK, TICK))
        assert queue.seconds <= 2.5 * CUSHION
    assert queue.overruns > 0 and queue.underruns == 0
    _play(queue, device, 25, first=50)
    assert _steepest(device.heard()) < STEEP and queue.seconds < 0.2


def test_hushing_fades_forgets_and_is_no_underrun() -> None:
    queue = SoundQueue(RATE)
    device = FakeDevice(queue.pull)
    _play(queue, device, 25)
    queue.hush()
    device.played, before = device.played[-1:], queue.seconds
    device.run(0.2)
    assert before > 0.05 and queue.seconds == 0 and queue.underruns == 0
    faded = int(np.flatnonzero(device.heard())[-1])
    assert faded / RATE < 0.04 and _steepest(device.heard()) < STEEP
    _play(queue, device, 25, first=100)
    assert np.abs(device.heard()).max() > 0.9 * LOUD and _steepest(device.heard()) < STEEP
    queue.hush()
    queue.push(tone(0, TICK))  # before the fade has ended
    device.run(0.2)
    assert _steepest(device.heard()) < STEEP


def test_volume_comes_by_a_fade() -> None:
    queue = SoundQueue(RATE)
    device = FakeDevice(queue.pull)
    _play(queue, device, 25)
    for volume in (0.5, 0.0, 1.0):
        queue.set_volume(volume)
        device.played = device.played[-1:]
        _play(queue, device, 10)
        assert _steepest(device.heard()[441:]) < STEEP
        assert abs(np.abs(device.heard()[-2000:]).max() - volume * LOUD) < 0.01 * LOUD + 1


def test_a_slow_clock_stretches_and_does_not_run_dry() -> None:
    queue = SoundQueue(RATE)
    device = FakeDevice(queue.pull)
    for tick in range(200):
        queue.push(tone(tick * TICK, TICK), slowed=0.8)
        device.run(0.05)
    assert queue.underruns == queue.overruns == 0


def test_bending_reads_between_neighbours() -> None:
    line = np.arange(5, dtype=np.float32)[:, None].repeat(2, 1)
    out, at = bend(line, 0.5, 0.75, 10)
    assert out[:, 0].tolist() == [0.5, 1.25, 2.0, 2.75, 3.5] and at == 4.25
    out, at = bend(line, 4.25, 0.75, 10)
    assert len(out) == 0 and at == 4.25


def _frame(tick: int) -> Frame:
    return Frame(np.zeros((2, 2, 3), np.uint8), tone(tick * TICK, TICK))


def test_ticks_in_a_row_are_heard_as_they_are() -> None:
    hearing = Hearing()
    pieces = [hearing.piece(_frame(t), t, True) for t in range(1, 6)]
    assert pieces[0] is None  # where it was before is not known
    line = np.concatenate([p for p in pieces if p is not None])
    assert np.array_equal(line[1:], tone(2 * TICK, 4 * TICK)[:-1])


@pytest.mark.parametrize("speed", [0.5, 0.25, 0.125])
def test_slow_motion_sounds_like_a_slowed_tape(speed: float) -> None:
    hearing, parts = Hearing(), []
    every = round(1 / speed)
    hearing.piece(_frame(0), 0, True, speed)
    for clock in range(40):
        parts.append(hearing.piece(_frame(1 + clock // every), 1 + clock // every, True, speed))
    assert all(p is not None and p.shape == (TICK, 2) for p in parts)
    line = np.concatenate([p for p in parts if p is not None])[:, 0].astype(float)
    spectrum = np.abs(np.fft.rfft(line * np.hanning(len(line))))
    assert abs(np.argmax(spectrum) * RATE / len(line) - TONE * speed) < 2
    assert _steepest(line) < STEEP


def test_what_jumps_stands_still_or_goes_back_is_silent() -> None:
    hearing = Hearing()
    hearing.piece(_frame(1), 1, True)
    assert hearing.piece(_frame(2), 2, True) is not None
    assert hearing.piece(_frame(2), 2, False) is None  # paused
    assert hearing.piece(_frame(10), 10, True) is None  # fast forward
    assert hearing.piece(_frame(4), 4, True) is None  # back
    assert hearing.piece(_frame(5), 5, True) is not None
    assert hearing.piece(replace(_frame(6), audio=None), 6, True) is None


class _Stage:
    """A session on a world that sounds, a loop, and a device that keeps pace with a fake clock."""

    def __init__(self, script: list[Input]) -> None:
        self.time = FakeTime()
        self._seen = self.time.now
        self.devices: list[FakeDevice] = []
        self.session = Session(SoundingWorld(), RandomPlayer(ACTIONS, 1))
        self.session.begin(1)
        self.said: list[str] = []
        self.speaker = Speaker(self.said.append, self._open)
        clock = Clock(time=self.time, sleep=self._sleep)
        self.loop = Loop(self.session, FakeFront(script), clock, speaker=self.speaker)

    def _open(self, pull: Pull, rate: int) -> FakeDevice:
        self.devices.append(FakeDevice(pull, rate))
        return self.devices[-1]

    def _sleep(self, seconds: float) -> None:
        self.time.sleep(seconds)
        passed, self._seen = self.time.now - self._seen, self.time.now
        for device in self.devices:
            device.run(passed)

    def loudness(self, first: float, last: float) -> float:
        """Loudest sample between two times in seconds."""
        line = self.devices[0].heard()
        return float(np.abs(line[int(first * RATE) : int(last * RATE)]).max())


def test_the_loop_is_heard_paused_and_rewound() -> None:
    script = (
        [Input()] * 30 + [press(Command.PAUSE)] + [Input()] * 24 + [press(Command.PAUSE)] + [Input()] * 24
    )
    script += [hold(Command.REWIND)] * 25 + [Input()] * 25 + [hold(Command.FAST_FORWARD)] * 25
    stage = _Stage(script)
    stage.loop.run()
    assert len(stage.devices) == 1
    assert stage.loudness(0.3, 1.2) > 8000  # playing, from 0 to 1.2 s
    assert stage.loudness(1.3, 2.2) == 0  # paused, to 2.2 s
    assert stage.loudness(2.45, 3.2) > 8000  # playing again, to 3.2 s
    assert stage.loudness(3.3, 4.2) == 0  # rewinding, to 4.2 s
    assert stage.loudness(4.5, 5.2) > 8000  # playing, to 5.2 s
    assert stage.loudness(5.3, 6.1) == 0  # fast forward
    queue = stage.speaker.queue
    assert queue is not None and queue.underruns == 0 and stage.speaker.lines() == []


def test_keys_change_the_volume() -> None:
    stage = _Stage([Input()] * 20 + [press(Command.MUTE)] + [Input()] * 20 + [press(Command.QUIETER)] * 2)
    stage.loop.run(35)
    assert stage.loudness(1.0, 1.3) == 0 and stage.said == ["muted"]
    stage.loop.run()
    assert stage.said[-1] == "volume 80 %" and not stage.speaker.muted
    for _ in range(10):
        stage.speaker.obey(Command.QUIETER)
    assert stage.said[-1] == "volume 0 %"
    stage.speaker.obey(Command.LOUDER)
    assert stage.said[-1] == "volume 10 %"


def test_a_machine_without_a_device_says_so_once_and_plays_on() -> None:
    def refuse(pull: Pull, rate: int) -> FakeDevice:
        raise SpeakerError("nothing is plugged in")

    said: list[str] = []
    speaker = Speaker(said.append, refuse)
    for tick in range(1, 200):
        speaker.hear(_frame(tick), tick, True)
    assert said == ["no sound: nothing is plugged in"]
    speaker.obey(Command.MUTE)
    speaker.close()


def test_a_device_that_is_lost_costs_a_notice() -> None:
    stage = _Stage([Input()] * (30 + 2 * LOST_TICKS))
    stage.loop.run(30)
    stage.devices[0].gone = True
    summary = stage.loop.run()
    assert summary.ticks == 30 + 2 * LOST_TICKS and stage.session.tick == summary.ticks
    assert stage.said == ["the sound device is gone; the game goes on without sound"]
    for _ in range(100):  # it is closed beside the game
        if stage.devices[0].closed:
            break
        time.sleep(0.01)
    assert stage.devices[0].closed and stage.speaker.queue is None


def test_a_silent_world_and_a_silent_player_open_no_device() -> None:
    def fail(pull: Pull, rate: int) -> FakeDevice:
        raise AssertionError("no device is needed")

    session = Session(StubWorld(), RandomPlayer(ACTIONS, 1))
    session.begin(1)
    speaker = Speaker(session.messages.append, fail)
    Loop(
        session, FakeFront([Input()] * 9), Clock(time=(t := FakeTime()), sleep=t.sleep), speaker=speaker
    ).run()
    off = Speaker(session.messages.append)
    assert off.hear(_frame(1), 1, True) is None and off.hear(_frame(2), 2, True) is not None  # as for a film
    assert off.queue is None


@pytest.mark.parametrize("arguments", [[], ["--no-audio"]])
def test_sound_can_be_left_out(monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    import game.play
    import main

    seen = []
    monkeypatch.setattr(game.play, "play", lambda options, *rest: seen.append(options))
    main.app(["play", *arguments], standalone_mode=False)
    assert seen[0].audio == (not arguments)


def test_pygames_mixer_pulls() -> None:
    queue = SoundQueue(RATE)
    device = mixer.MixerDevice(queue.pull, RATE)
    for _ in range(200):
        if queue.pulls > 3:
            break
        time.sleep(0.01)
    device.close()
    assert queue.pulls > 3
    pulls = queue.pulls
    time.sleep(0.03)
    assert queue.pulls == pulls


def test_a_mixer_that_cannot_be_opened_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDL_AUDIODRIVER", "nonexistent")
    with pytest.raises(SpeakerError, match="mixer"):
        mixer.MixerDevice(SoundQueue(RATE).pull, RATE)


def test_miniaudio_pulls() -> None:
    miniaudio = pytest.importorskip("miniaudio")
    queue = SoundQueue(RATE)
    device = MiniaudioDevice(queue.pull, RATE, backends=[miniaudio.Backend.NULL])
    for _ in range(200):
        if queue.pulls > 3:
            break
        time.sleep(0.01)
    device.close()
    assert queue.pulls > 3


def _decoded(path: Path) -> tuple[NDArray[np.float32], int, int]:
    """Sound of a film, its rate, and how many pictures it has."""
    av = pytest.importorskip("av")
    with av.open(str(path)) as container:
        pictures = sum(1 for _ in container.decode(video=0))
    with av.open(str(path)) as container:
        line = np.zeros(0, np.float32)
        for frame in container.decode(audio=0):
            at, rate = round(float(frame.time) * frame.sample_rate), frame.sample_rate
            part = frame.to_ndarray()[0]
            line = np.concatenate((line, np.zeros(max(at + len(part) - len(line), 0), np.float32)))
            line[max(at, 0) : at + len(part)] = part[max(-at, 0) :]
    return line, rate, pictures


@pytest.mark.parametrize("live", [False, True])
def test_a_film_sounds_when_it_shows(tmp_path: Path, live: bool) -> None:
    """A bang at tick 30; pictures 10 to 14 were left out, their sound was not told either."""
    pytest.importorskip("av")
    path = tmp_path / "film.mp4"
    writer = VideoWriter(path, 64, 40, RATE, live=live)
    bang = np.full((TICK, 2), 20000, np.int16)
    bang[1::2] *= -1
    for tick in [*range(10), *range(15, 50)]:
        writer.write(np.zeros((40, 64, 3), np.uint8), tick, bang if tick == 30 else None)
    writer.close()
    line, rate, pictures = _decoded(path)
    assert rate == RATE and pictures == 45 and abs(len(line) / RATE - 2) < 0.1
    loud = np.flatnonzero(np.abs(line) > 0.2) / RATE
    assert abs(loud[0] - 30 / FPS) < 0.03 and abs(loud[-1] - 31 / FPS) < 0.03


def test_a_live_film_has_what_is_heard(tmp_path: Path) -> None:
    pytest.importorskip("av")
    film = LiveFilm(tmp_path / "film.mp4", 64, 40, RATE)
    frame = Frame(np.zeros((40, 64, 3), np.uint8))
    for tick in range(50):
        film.show(frame, tone(tick * TICK, TICK) if 20 <= tick < 30 else None)
    film.close()
    line, _, _ = _decoded(film.path)
    loud = np.flatnonzero(np.abs(line) > 0.15) / RATE
    assert film.error is None and abs(loud[0] - 0.8) < 0.03 and abs(loud[-1] - 1.2) < 0.03


def test_a_recording_replays_its_sound_and_films_it(tmp_path: Path) -> None:
    pytest.importorskip("av")
    world = SoundingWorld()
    log = SessionLog(tmp_path / "rec", world)
    session = Session(world, RandomPlayer(ACTIONS, 1), [log])
    session.begin(2)
    for _ in range(30):
        session.advance(Input())
    log.close()
    recording = read_recording(tmp_path / "rec")
    assert all("sound" in r for r in recording.records[1:])
    assert replay(recording, SoundingWorld()) == (30, None)
    assert "30 ticks" in render(recording, SoundingWorld(), tmp_path / "film.mp4", (64, 40))
    line, _, pictures = _decoded(tmp_path / "film.mp4")
    assert pictures == 31 and abs(len(line) / RATE - 31 / FPS) < 0.1 and np.abs(line).max() > 0.1
    recording.records[9]["sound"] ^= 1
    _, difference = replay(recording, SoundingWorld())
    assert difference is not None and (difference.tick, difference.what) == (9, "the sound")


def test_a_silent_recording_says_nothing_of_sound(tmp_path: Path) -> None:
    log = SessionLog(tmp_path, world := StubWorld())
    session = Session(world, RandomPlayer(ACTIONS, 1), [log])
    session.begin(2)
    session.advance(Input())
    log.close()
    lines = (tmp_path / LOG_NAME).read_text().splitlines()
    assert len(lines) == 3 and not any("sound" in json.loads(line[9:]) for line in lines)
    assert sound_rate(world) == 0


def test_a_rollout_keeps_its_sound(tmp_path: Path) -> None:
    world = SoundingWorld()
    episode = read_episode(record_rollout(world, RandomPlayer(ACTIONS, 1), 12, tmp_path / "out", 3))
    assert episode.sound is not None and episode.sound.shape == (12, TICK, 2)
    assert np.array_equal(episode.sound[-1], world.audio)


def test_a_recording_is_exported_with_its_sound(tmp_path: Path) -> None:
    world = SoundingWorld()
    log = SessionLog(tmp_path / "rec", world)
    session = Session(world, RandomPlayer(ACTIONS, 1), [log])
    session.begin(2)
    heard = [session.advance(Input()).audio for _ in range(20)]
    for asked in [hold(Command.REWIND)] * 5 + [Input()] * 2:
        heard.append(session.advance(asked).audio)
    log.close()
    export(tmp_path / "rec", "npz", tmp_path / "out", lambda name: SoundingWorld())
    kept = np.load(tmp_path / "out" / "episode_00000.npz", allow_pickle=False)
    wanted = [*heard[:15], *heard[-2:]]  # as it was played last
    assert kept["sound"].shape == (17, TICK, 2) and len(kept["obs"]) == 18
    assert np.array_equal(kept["sound"], np.stack([sound for sound in wanted if sound is not None]))
