"""Recordings killed at any moment: what was recorded replays, and hardly anything is lost."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from game.recorder import LOG_NAME
from game.replay import read_recording, replay
from stub_world import StubWorld
from world_model.types import FPS

# One program forks the players, as starting fifty would take long. What a player has done stands in memory
# that it shares with the one who kills it: a number written there is not lost with the process.
PLAYERS = """
import mmap, os, random, signal, sys, time
sys.path[:0] = sys.argv[4:]
from pathlib import Path
import numpy as np
from game.keys import Command, Input
from game.recorder import SessionLog
from game.session import Session
from stub_world import StubWorld, hold, press
try:
    import av
    from game.video import VideoWriter
except ImportError:
    VideoWriter = None

class Count:
    def __init__(self, numbers):
        self.numbers = numbers
    def start(self, seed, scene, actions, frame): pass
    def rewind(self, tick): pass
    def tick(self, tick, action, frame):
        self.numbers[0] += 1

def play(folder, numbers, rng):
    world = StubWorld()
    session = Session(world, logs=[SessionLog(folder, world), Count(numbers)])
    session.begin(seed=rng.randrange(1000))
    film = VideoWriter(folder / "film.mp4", 64, 40, live=True) if VideoWriter else None
    while True:
        asked = (Input(rng.randrange(7)), hold(Command.REWIND), press(Command.RESTART))
        frame = session.advance(rng.choices(asked, (40, 8, 1))[0])
        if film:
            film.write(frame.image, int(numbers[1]))
            numbers[1] += 1

root, kills, rng = Path(sys.argv[1]), int(sys.argv[2]), random.Random(int(sys.argv[3]))
for kill in range(kills):
    shared = mmap.mmap(-1, 16)
    numbers = np.frombuffer(shared, np.int64)
    until, seed = rng.randrange(1, 300), rng.randrange(1 << 30)
    player = os.fork()
    if player == 0:
        play(root / str(kill), numbers, random.Random(seed))
    while numbers[0] < until:
        time.sleep(0.0003)
    os.kill(player, signal.SIGKILL)
    os.waitpid(player, 0)
    print(kill, int(numbers[0]), int(numbers[1]), flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kill -9 is a thing of POSIX")
@pytest.mark.parametrize("kills", [5, pytest.param(50, marks=pytest.mark.slow)])
def test_a_kill_costs_at_most_a_tick_of_the_log_and_a_second_of_film(tmp_path: Path, kills: int) -> None:
    tests = Path(__file__).parent
    seed = random.SystemRandom().randrange(1 << 30)
    command = [
        sys.executable,
        "-c",
        PLAYERS,
        str(tmp_path),
        str(kills),
        str(seed),
        str(tests),
        str(tests.parent),
    ]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    done = [[int(number) for number in line.split()] for line in run.stdout.splitlines()]
    assert len(done) == kills
    for kill, ticks, pictures in done:
        folder = tmp_path / str(kill)
        recording = read_recording(folder)
        assert recording.altered is None, f"seed {seed}"
        compared, difference = replay(recording, StubWorld())
        assert difference is None, f"seed {seed}"
        assert ticks <= compared <= ticks + 1, f"seed {seed}: a tick that was reported is lost"
        assert recording.cut == (not (folder / LOG_NAME).read_bytes().endswith(b"\n"))
        if (folder / "film.mp4").exists():
            assert pictures - FPS - 1 <= _pictures(folder / "film.mp4") <= pictures + 1, f"seed {seed}"


def _pictures(film: Path) -> int:
    """Pictures that can still be seen."""
    import av

    try:
        with av.open(str(film)) as container:
            return sum(1 for _ in container.decode(video=0))
    except av.error.FFmpegError:
        return 0  # not even the first second was complete
