"""The command line: what it plays, what it refuses, how it ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import main
from game.clock import Percentiles, Sections
from game.keys import Input
from game.loop import Summary
from game.play import Options
from game.window import Window
from stub_world import StubWorld

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(main, "_load_world", lambda name: StubWorld(name))
    monkeypatch.setenv("REVERIE_HOME", str(tmp_path / "home"))


@pytest.mark.usefixtures("stub")
def test_record_then_replay_on_the_command_line(tmp_path: Path) -> None:
    run = CliRunner().invoke
    out = str(tmp_path / "out")
    assert run(main.app, ["record", "--frames", "9", "--out", out]).exit_code == 0
    again = run(main.app, ["replay", out])
    assert (again.exit_code, "9 ticks replay exactly" in again.output) == (0, True)


@pytest.mark.usefixtures("stub")
def test_bench_ends_with_a_json_line(tmp_path: Path) -> None:
    run = CliRunner().invoke
    result = run(main.app, ["bench", "--ticks", "20", "--warmup", "2"])
    assert json.loads(result.output.strip().splitlines()[-1])["ticks"] == 20
    (tmp_path / "before").write_text(result.output)
    assert " x" in run(main.app, ["bench", "--ticks", "20", "--compare", str(tmp_path / "before")]).output


@pytest.mark.usefixtures("stub")
def test_without_a_command_it_plays(monkeypatch: pytest.MonkeyPatch) -> None:
    played: list[Options] = []

    def note(options: Options, *sources: object) -> Summary:
        played.append(options)
        return Summary(0, Sections(), Percentiles(), 0, 0.0, 0.0)

    monkeypatch.setattr("game.play.play", note)
    assert CliRunner().invoke(main.app, []).exit_code == 0
    assert played == [Options()]


@pytest.mark.parametrize("more", [["--twin"], ["--world", "x"], ["--scene", "x"]])
def test_the_real_game_alone_takes_no_world_twin_or_scene(
    more: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("game.play.play", None)
    result = CliRunner().invoke(main.app, ["play", "--source", "rooms", *more])
    assert result.exit_code == 2
    assert "--source plays the real game alone" in " ".join(result.output.split())


def test_options_without_a_command_are_those_of_play() -> None:
    assert main.with_command(["--world", "rooms"]) == ["play", "--world", "rooms"]
    assert main.with_command([]) == []
    assert main.with_command(["--help"]) == ["--help"]
    assert main.with_command(["replay", "x"]) == ["replay", "x"]


@pytest.mark.usefixtures("stub")
def test_ctrl_c_still_gives_the_summary(monkeypatch: pytest.MonkeyPatch) -> None:
    polls = iter([Input(1)] * 5)

    def poll(window: Window) -> Input:
        asked = next(polls, None)
        if asked is None:
            raise KeyboardInterrupt
        return asked

    monkeypatch.setattr("game.window.Window.poll", poll)
    result = CliRunner().invoke(main.app, ["play", "--world", "stub", "--fast"])
    assert result.exit_code == 130
    assert " ticks in " in result.output and "recording: " in result.output


def _run(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "main.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | env, timeout=60)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(("record", "--world", "no such world", "--out", "x"), 3), (("replay", "no such folder"), 6)],
)
def test_errors_are_one_line_and_an_exit_code(arguments: tuple[str, ...], code: int, tmp_path: Path) -> None:
    result = _run(*arguments, REVERIE_HOME=str(tmp_path))
    assert result.returncode == code
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1


def test_wrong_usage_is_code_2_and_help_names_the_codes() -> None:
    assert CliRunner().invoke(main.app, ["play", "--no-such-option"]).exit_code == 2
    assert "Exit codes" in CliRunner().invoke(main.app, ["--help"]).output


def test_help_imports_neither_torch_nor_pygame() -> None:
    code = "import sys, main; print(sorted({'torch', 'pygame'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.stdout.strip() == "[]"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there is always a screen")
def test_without_a_screen_playing_ends_with_code_5() -> None:
    hidden = {"DISPLAY": "", "WAYLAND_DISPLAY": "", "SDL_VIDEODRIVER": ""}
    result = _run("play", **hidden)
    assert result.returncode == 5
    assert result.stderr.splitlines()[-1].startswith("error: no window can be opened")
