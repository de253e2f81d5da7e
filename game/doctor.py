"""Looks at the machine and says what to mend before playing."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from game.machine import PACKAGES, cpu_model, usable_cores, versions
from game.sound import CHANNELS, Pull, Sound, SpeakerError
from game.speaker import Device

SOUND_RATE = 22050
SOUND_WAIT = 2.0
"""Seconds within which a device must have asked for samples."""


@dataclass(frozen=True)
class Finding:
    """What was looked at, what was found, and what to do about it ("" if nothing)."""

    name: str
    found: str
    remedy: str = ""


def examine(window_driver: Callable[[], str], open_device: Callable[[Pull, int], Device]) -> list[Finding]:
    """`window_driver` opens a window for a moment and returns SDL's driver, or raises; `open_device` is
    that of `speaker.Speaker`."""
    return [
        _processor(),
        _versions(),
        _threads(),
        _display(window_driver),
        _sound(open_device),
        _timer(),
        _sleep(),
        _gemm(),
        _worlds(),
    ]


def report(findings: list[Finding]) -> str:
    """One line each, the remedy below where there is one."""
    lines = []
    for finding in findings:
        lines.append(f"{'ok ' if not finding.remedy else '!! '} {finding.name:<12}{finding.found}")
        if finding.remedy:
            lines.append(f"{'':>16}-> {finding.remedy}")
    return "\n".join(lines)


def _processor() -> Finding:
    cores = usable_cores()
    remedy = "" if cores > 1 else "one core is little: expect slow motion; give the process two"
    return Finding("processor", f"{cpu_model()}, {cores} of {os.cpu_count()} cores", remedy)


def _versions() -> Finding:
    found = versions()
    missing = [name for name in PACKAGES if found[name] == "-"]
    remedy = f"pip install {' '.join(missing)}" if missing else ""
    return Finding("versions", ", ".join(f"{n} {v}" for n, v in found.items()), remedy)


def _threads() -> Finding:
    value = os.environ.get("OMP_NUM_THREADS", "")
    cores = usable_cores()
    if not value:
        return Finding("threads", f"chosen by torch, from {cores} cores")
    wrong = not value.isdigit() or int(value) > cores
    remedy = f"unset OMP_NUM_THREADS, or set it to at most {cores}" if wrong else ""
    return Finding("threads", f"OMP_NUM_THREADS={value}", remedy)


def _display(window_driver: Callable[[], str]) -> Finding:
    from world_model.types import DisplayError

    try:
        return Finding("display", f"SDL driver {window_driver()}")
    except DisplayError as err:
        return Finding("display", "no window can be opened", str(err))


def _sound(open_device: Callable[[Pull, int], Device]) -> Finding:
    asked = threading.Event()

    def pull(count: int) -> Sound:
        asked.set()
        return np.zeros((count, CHANNELS), np.int16)

    try:
        device = open_device(pull, SOUND_RATE)
    except SpeakerError as err:
        remedy = f"worlds with sound are played silently; to hear them: {err}"
        return Finding("sound", "no device can be opened", remedy)
    name, lively = type(device).__name__.removesuffix("Device"), asked.wait(SOUND_WAIT)
    device.close()
    remedy = "" if lively else "the device plays nothing: choose another one as the system's default"
    return Finding("sound", f"{name}, {SOUND_RATE} Hz, {CHANNELS} channels", remedy)


def _timer() -> Finding:
    step = time.get_clock_info("perf_counter").resolution
    remedy = "the clock is too coarse for 40 ms" if step > 1e-3 else ""
    return Finding("timer", f"resolution {1e6 * step:.3g} us", remedy)


def _sleep() -> Finding:
    late = []
    for _ in range(10):
        began = time.perf_counter()
        time.sleep(0.002)
        late.append(1e3 * (time.perf_counter() - began) - 2)
    worst = max(late)
    remedy = "sleeping overshoots: close other programs, or deadlines will be missed" if worst > 5 else ""
    return Finding("sleep", f"overshoots by {np.median(late):.2f} ms, at worst {worst:.2f} ms", remedy)


def _gemm(size: int = 512, repeats: int = 5) -> Finding:
    a = np.ones((size, size), np.float32)
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        a @ a
        seconds.append(time.perf_counter() - began)
    rate = 2 * size**3 / min(seconds) / 1e9
    remedy = "this is slow: is another program using the processor, or a power saver on?" if rate < 20 else ""
    return Finding("arithmetic", f"{rate:.0f} GFLOP/s in float32 (matrix product, numpy)", remedy)


def _worlds() -> Finding:
    from world_model.paths import list_worlds

    names = ", ".join(list_worlds())
    remedy = "" if names else "reinstall reverie, or set REVERIE_WORLDS to a folder of worlds"
    return Finding("worlds", names or "none is installed", remedy)
