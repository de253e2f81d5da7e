"""Bindings, the picker, films, traces and the doctor."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pygame
import pytest

from game.bindings import read_bindings
from game.clock import Clock
from game.doctor import examine, report
from game.keys import Command, Input
from game.loop import Loop
from game.picker import Card, columns_for, move, pick, pick_start
from game.play import Options, play
from game.players import RandomPlayer
from game.recorder import record_rollout
from game.replay import read_recording, render, replay, timeline
from game.session import Session
from game.sound import Pull, SpeakerError
from game.speaker import Device
from game.video import LiveFilm
from game.window import Window, sdl_driver
from stub_world import ACTIONS, FakeFront, FakeTime, StubWorld, press
from world_model.types import Action, DataError, DisplayError, ReverieError


def _bindings(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "keys.toml"
    path.write_text(text)
    return path


def test_own_keys_replace_the_defaults_of_that_name(tmp_path: Path) -> None:
    path = _bindings(tmp_path, '[game]\nup = ["i"]\n[commands]\npause = ["space", "w"]\n')
    bindings = read_bindings(path, ACTIONS)
    assert bindings.game["i"] == "up"
    assert "up" not in bindings.game and "w" not in bindings.game
    assert bindings.game["a"] == "left"
    assert bindings.keys_of(Command.PAUSE) == ("space", "w")
    assert bindings.keys_of(Command.QUIT) == ("escape",)
    assert not set(bindings.game) & set(bindings.commands)


def test_no_file_means_the_defaults(tmp_path: Path) -> None:
    assert read_bindings(tmp_path / "none.toml", ACTIONS).game["w"] == "up"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('[game]\nfly = ["i"]', "unknown name game.fly"),
        ('[commands]\nexplode = ["i"]', "unknown name commands.explode"),
        ('[colours]\nred = ["i"]', "unknown section 'colours'"),
        ('[game]\nup = "i"', "not a list"),
        ('[game]\nup = ["i", 3]', "not a list"),
        ('[game]\nup = ["warp drive"]', "'warp drive' that does not exist"),
        ('[game]\nup = ["i"]\ndown = ["i"]', "given to both up and down"),
        ('[game]\nup = ["i"]\n[commands]\npause = ["i"]', "given to both up and pause"),
        ("game = 3", "not a section"),
        ("[game\n", "not TOML"),
        ("#" * 70_000, "larger"),
    ],
)
def test_bad_bindings_are_one_clear_error(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(DataError, match=reason) as caught:
        read_bindings(_bindings(tmp_path, text), ACTIONS)
    assert str(tmp_path / "keys.toml") in str(caught.value)


def test_a_file_that_a_person_named_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_bindings(tmp_path / "none.toml", ACTIONS, named=True)


def test_a_worlds_own_keys_can_be_moved_before_and_after_it_is_known(tmp_path: Path) -> None:
    path = _bindings(tmp_path, '[game]\nq = ["z"]\nup = ["I"]\n[commands]\nslot = ["[1]", "2"]\n')
    for actions in ((), ACTIONS, (Action("lean", ("q",)),)):
        bindings = read_bindings(path, actions)
        assert bindings.game["z"] == "q" and "q" not in bindings.game
        assert bindings.game["i"] == "up"  # a key is known by its lower case
        assert bindings.keys_of(Command.SLOT) == ("[1]", "2")


@pytest.mark.parametrize("key", ["s", "²", "[+]"])
def test_a_slots_key_says_which_slot(tmp_path: Path, key: str) -> None:
    with pytest.raises(DataError, match="no digit"):
        read_bindings(_bindings(tmp_path, f'[commands]\nslot = ["{key}"]'))


class FakeMenu:
    def __init__(self, keys: list[list[str]]) -> None:
        self.keys, self.titles, self.chosen = keys, [], []  # type: list[list[str]], list[str], list[int]

    def menu_keys(self) -> list[str]:
        return self.keys.pop(0)

    def draw_cards(self, title: str, cards: Sequence[Card], chosen: int, columns: int) -> None:
        self.titles.append(title)
        self.chosen.append(chosen)

    def flip(self) -> None: ...


def _clock() -> Clock:
    time = FakeTime()
    return Clock(time=time, sleep=time.sleep)


def test_moving_among_cards() -> None:
    assert [columns_for(n) for n in (1, 3, 4, 5, 9, 20)] == [1, 3, 4, 3, 3, 4]
    assert [move(1, key, 7, 4) for key in ("left", "d", "down", "up", "x")] == [0, 2, 5, 1, 1]
    assert [move(6, key, 7, 4) for key in ("right", "down", "up")] == [6, 6, 2]


def test_picking_by_keys_mouse_and_not_at_all() -> None:
    cards = [Card(str(i)) for i in range(6)]
    menu = FakeMenu([[], ["right"], ["down", "right"], ["return"]])
    assert pick(menu, _clock(), "Where to?", cards) == 5
    assert menu.chosen == [0, 1, 5]
    assert pick(FakeMenu([["click 2"]]), _clock(), "", cards) == 2
    assert pick(FakeMenu([["escape"]]), _clock(), "", cards) is None
    assert pick(FakeMenu([]), _clock(), "", cards[:1]) == 0
    assert pick(FakeMenu([]), _clock(), "", []) is None


def test_a_world_and_then_a_start(tmp_path: Path) -> None:
    (tmp_path / "b" / "scenes").mkdir(parents=True)
    (tmp_path / "b" / "scenes" / "hall.safetensors").write_bytes(b"")
    worlds = {"a": tmp_path / "a", "b": tmp_path / "b"}
    assert pick_start(FakeMenu([["right", "return"], ["right", "return"]]), _clock(), lambda: worlds) == (
        "b",
        "hall",
    )
    assert pick_start(FakeMenu([["right", "return"], ["return"]]), _clock(), lambda: worlds) == ("b", None)
    assert pick_start(FakeMenu([["return"]]), _clock(), lambda: worlds) == ("a", None)


@pytest.fixture
def window() -> Iterator[Window]:
    window = Window(read_bindings(Path("none"), ACTIONS), ACTIONS)
    pygame.event.clear()
    yield window
    window.close()


def test_the_window_shows_cards_and_takes_clicks(window: Window, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    cards = [Card("anywhere", "chosen by the seed", broken), *(Card(f"hall {i}") for i in range(30))]
    window.draw_cards("rooms", cards, 30, 4)
    window.draw_cards("rooms", cards, 0, 4)
    spot = window.cards._spots[1]
    pygame.event.post(pygame.event.Event(pygame.MOUSEBUTTONDOWN, button=1, pos=spot.center))
    pygame.event.post(pygame.event.Event(pygame.KEYDOWN, key=pygame.K_RIGHT))
    assert window.menu_keys() == ["click 1", "right"]
    assert window.poll() == Input()


def _install(tmp_path: Path, *names: str) -> dict[str, Path]:
    return {name: tmp_path / name for name in names}


def test_without_a_name_one_world_is_played_and_several_are_asked_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []

    def load(name: str) -> StubWorld:
        loaded.append(name)
        return StubWorld(name)

    options = Options(fast=True, ticks=3, home=tmp_path, log=False)
    play(options, load, lambda: _install(tmp_path, "only"))
    monkeypatch.setattr(Window, "menu_keys", lambda self: ["right", "return"])
    play(options, load, lambda: _install(tmp_path, "one", "two"))
    monkeypatch.setattr(Window, "menu_keys", lambda self: ["escape"])
    assert play(options, load, lambda: _install(tmp_path, "one", "two")) is None
    assert loaded == ["only", "two"]


def test_bad_bindings_stop_before_a_window_opens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("game.window.Window", None)
    with pytest.raises(DataError, match="unknown name"):
        play(Options(keys=_bindings(tmp_path, "[commands]\nfly = []")), StubWorld, dict)


def test_a_recording_plays_itself_from_its_own_start(tmp_path: Path) -> None:
    kept = record_rollout(StubWorld(), RandomPlayer(ACTIONS, 3), 30, tmp_path / "kept", seed=11, scene="yard")
    options = Options("stub", player=str(kept), fast=True, ticks=30, home=tmp_path)
    play(options, StubWorld, dict)
    (again,) = (tmp_path / "recordings").iterdir()
    assert timeline(read_recording(again)) == timeline(read_recording(kept))


def test_without_the_extra_the_key_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    session = Session(StubWorld())
    session.begin()
    front = FakeFront([press(Command.VIDEO), Input()])
    loop = Loop(session, front, _clock(), film=lambda: LiveFilm(tmp_path / "film.mp4", 64, 40))
    loop.run()
    assert "pip install 'reverie[video]'" in loop.hud.message
    assert session.tick == 2
    with pytest.raises(ReverieError, match="video"):
        LiveFilm(tmp_path / "film.mp4", 64, 40)


def test_a_film_has_every_picture(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    session = Session(StubWorld())
    session.begin()
    front = FakeFront([press(Command.VIDEO)] + [Input()] * 29 + [press(Command.VIDEO), Input()])
    path = tmp_path / "films" / "film.mp4"
    loop = Loop(session, front, _clock(), film=lambda: LiveFilm(path, 64, 40))
    loop.run()
    assert "film saved" in loop.hud.message
    with av.open(str(path)) as container:
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(pictures) == 30
    assert pictures[0].shape == (40, 64, 3)
    assert abs(float(pictures[-1].mean()) - float(front.shown[29].image.mean())) < 6


FILMING = """
import sys
sys.path[:0] = sys.argv[2:]
from pathlib import Path
import numpy as np
from game.video import VideoWriter
writer = VideoWriter(Path(sys.argv[1]), 128, 80, live=True)
for tick in range(100000):
    writer.write(np.full((40, 64, 3), tick % 200, np.uint8), tick)
    print(tick, flush=True)
"""


@pytest.mark.slow
def test_a_killed_film_loses_at_most_a_second(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    path = tmp_path / "film.mp4"
    tests = Path(__file__).parent
    child = subprocess.Popen(
        [sys.executable, "-c", FILMING, str(path), str(tests), str(tests.parent)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    while (line := child.stdout.readline()) and int(line) < 130:
        pass
    child.kill()
    last = max(int(n) for n in [line, *child.stdout.read().split("\n")[:-1]])
    child.stdout.close()
    child.wait()
    pictures = 0
    with av.open(str(path)) as container:
        for _ in container.decode(video=0):
            pictures += 1
    assert last - 26 <= pictures <= last + 1


@pytest.mark.parametrize("name", ["out.mp4", "out.gif"])
def test_a_recording_becomes_a_video(tmp_path: Path, name: str) -> None:
    av = pytest.importorskip("av")
    kept = record_rollout(StubWorld(), RandomPlayer(ACTIONS, 3), 30, tmp_path / "kept")
    assert "31 pictures" in render(read_recording(kept), StubWorld(), tmp_path / name, (128, 80))
    with av.open(str(tmp_path / name)) as container:
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(pictures) == 31
    assert pictures[0].shape == (80, 128, 3)


def test_the_doctor_names_every_finding_and_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing() -> str:
        raise DisplayError("no window; set DISPLAY")

    def no_device(pull: Pull, rate: int) -> Device:
        raise SpeakerError("plug one in")

    class MuteDevice:
        def __init__(self, pull: Pull, rate: int) -> None: ...

        def close(self) -> None: ...

    class LivelyDevice(MuteDevice):
        def __init__(self, pull: Pull, rate: int) -> None:
            assert pull(10).shape == (10, 2)

    monkeypatch.setenv("OMP_NUM_THREADS", "999")
    monkeypatch.setattr("game.doctor.SOUND_WAIT", 0.01)
    text = report(examine(nothing, no_device))
    names = "processor versions threads display sound timer sleep arithmetic worlds"
    assert all(f" {name}" in text for name in names.split())
    assert "-> no window; set DISPLAY" in text
    assert "-> unset OMP_NUM_THREADS" in text
    assert "to hear them: plug one in" in text
    assert "the device plays nothing" in report(examine(sdl_driver, MuteDevice))
    text = report(examine(sdl_driver, LivelyDevice))
    assert "dummy" in text and "ok  sound       Lively, 22050 Hz" in text


def test_replaying_twice_is_the_same(tmp_path: Path) -> None:
    kept = record_rollout(StubWorld(), RandomPlayer(ACTIONS, 3), 20, tmp_path / "kept")
    shown: list[np.ndarray] = []
    assert replay(read_recording(kept), StubWorld(), lambda f: shown.append(f.image)) == (20, None)
    assert len(shown) == 21


@pytest.mark.parametrize("size", [(64, 64), (128, 40), (64, 40)])
def test_a_video_of_another_shape_has_bars(tmp_path: Path, size: tuple[int, int]) -> None:
    av = pytest.importorskip("av")
    from game.video import VideoWriter

    writer = VideoWriter(tmp_path / "film.mp4", *size)
    for tick in range(3):
        writer.write(np.full((20, 32, 3), 200, np.uint8), tick)
    writer.close()
    with av.open(str(tmp_path / "film.mp4")) as film:
        picture = next(film.decode(video=0)).to_ndarray(format="rgb24")
    bright = np.argwhere(picture[..., 1] > 100)
    (top, left), (bottom, right) = bright.min(0), bright.max(0) + 1
    assert (right - left) / (bottom - top) == pytest.approx(32 / 20, rel=0.05)
    assert abs(left - (size[0] - right)) <= 1 and abs(top - (size[1] - bottom)) <= 1
    assert max((right - left) / size[0], (bottom - top) / size[1]) > 0.97


def test_a_gif_may_be_named_in_capitals(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    from game.video import VideoWriter

    writer = VideoWriter(tmp_path / "OUT.GIF", 32, 20)
    writer.write(np.full((20, 32, 3), 200, np.uint8), 0)
    writer.close()
    with av.open(str(tmp_path / "OUT.GIF")) as film:
        assert film.format.name == "gif"
