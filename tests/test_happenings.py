"""Protocol `events`: a toy fight whose every shot, number and fall is known, and dreamers that fail."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from toy_game import toy_data
from world_model.data.arena import FIELDS, FLASH, VARIABLES
from world_model.data.episodes import Episode, write_episode
from world_model.evaluation import measure
from world_model.evaluation.digits import BLANK, DIGITS, digits_of
from world_model.evaluation.happenings import (
    Probes,
    diversity,
    measure_happenings,
    scenery_of,
    train_probes,
)
from world_model.evaluation.plan import Plan
from world_model.evaluation.protocol import Clip, Images, Ints
from world_model.evaluation.report import evaluate
from world_model.evaluation.summary import summary_markdown
from world_model.evaluation.windows import HeldOut, held_out, windows
from world_model.types import DataError

TICKS = 260
SAMPLES = 882
GLYPHS = np.random.default_rng(7).integers(0, 2, (11, 7, 4)).repeat(2, 1).repeat(2, 2) * 200
GLYPHS[BLANK] = 0
BOX = (110, 60, 36, 40)
"""The monster: x, y, width, height."""


def draw(number: int, into: NDArray[np.uint8], box: tuple[int, int, int, int]) -> None:
    x, y, _, _ = box
    for i, digit in enumerate(digits_of(np.array([number]))[0]):
        into[y : y + 14, x + 9 * i : x + 9 * i + 8, 0] = GLYPHS[digit]


def fight(seed: int) -> Episode:
    """A shot every few ticks; the third fells the monster, which comes again; health falls now and then."""
    rng = np.random.default_rng(seed)
    frames = np.full((TICKS + 1, 160, 256, 3), 60, np.uint8)
    frames += rng.integers(0, 12, frames.shape[1:], dtype=np.uint8)
    sound = rng.integers(-90, 90, (TICKS, SAMPLES, 2)).astype(np.int16)
    numbers = np.zeros((TICKS + 1, len(VARIABLES)), np.int32)
    labels = np.zeros((TICKS + 1, 1, 5), np.int16)
    health, ammo, kills, hits, away = 100, 70, 0, 0, 0
    wait = 6
    for t in range(TICKS + 1):
        wait -= 1
        away = max(0, away - 1)
        if wait == 0:
            wait = int(rng.integers(9, 16))
            x, y, width, height = FLASH
            frames[t, y : y + height, x : x + width] = 240
            if t:
                sound[t - 1, 100:] = rng.integers(-15000, 15000, (SAMPLES - 100, 2))
            ammo, hits = (ammo - 1) % 100, hits + 1
            if hits == 3:
                hits, kills, away = 0, kills + 1, 14
        if rng.random() < 0.04:
            health = health - 3 if health > 10 else 100
        if not away:
            x, y, width, height = BOX
            frames[t, y : y + height, x : x + width, 1] = 220
            labels[t, 0] = [1, *BOX]
        draw(ammo, frames[t], FIELDS["SELECTED_WEAPON_AMMO"])
        draw(health, frames[t], FIELDS["HEALTH"])
        numbers[t, :3] = health, ammo, kills
    header = {"source": "arena", "actions": ["idle"], "fps": 25, "seed": seed, "labels": ["ArenaImp"]}
    header["variables"] = list(VARIABLES)
    return Episode(
        header=header,
        frames=frames,
        actions=np.zeros(TICKS, np.int16),
        phases=np.zeros(TICKS, np.uint8),
        pose=None,
        sound=sound,
        rewards=np.zeros(TICKS, np.float32),
        labels=labels,
        variables=numbers,
    )


class Replayed:
    """Shows and sounds what was recorded, late by so many ticks in sound and with a picture edited."""

    name = "replayed"

    def __init__(self, late: int = 0, bar_stands: bool = False, noise: int = 0) -> None:
        self._late, self._stands, self._noise = late, bar_stands, noise

    def reseeded(self, seed: int) -> Replayed:
        return Replayed(self._late, self._stands, seed if self._noise else 0)

    def reset(self, obs: NDArray[np.uint8], act: Ints, phase: Ints) -> Images:
        raise AssertionError("reset_clips comes instead")

    def reset_clips(self, clips: Sequence[Clip]) -> Images:
        self._clips, self._tick = clips, 0
        self._rng = np.random.default_rng(self._noise)
        return self._show()

    def step(self, act: Ints) -> Images:
        self._tick += 1
        return self._show()

    @property
    def heard(self) -> NDArray[np.int16]:
        at = [c.context - 2 + self._tick - self._late for c in self._clips]
        return np.stack(
            [np.asarray(c.sound[t]) for c, t in zip(self._clips, at, strict=True) if c.sound is not None]
        )

    def _show(self) -> Images:
        images = np.stack([c.real(self._tick) for c in self._clips])
        if self._stands:
            images[:, 134:] = np.stack([c.real(0)[134:] for c in self._clips])
        if self._noise:
            images[:, :100] += self._rng.integers(0, 40, images[:, :100].shape, dtype=np.uint8)
        return images


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fight")
    for split, seeds in (("train", range(20, 26)), ("val", (1, 2))):
        for seed in seeds:
            write_episode(folder / split / f"ep_{seed:03d}", fight(seed))
    return folder


@pytest.fixture(scope="module")
def data(root: Path) -> HeldOut:
    return held_out(root)


@pytest.fixture(scope="module")
def probes(root: Path, data: HeldOut) -> Probes:
    return train_probes(root, scenery_of(data), steps=(250, 150))


def measured(data: HeldOut, probes: Probes, dreamer: Any) -> dict[str, Any]:
    return measure_happenings(dreamer, data, windows(data, 200, 4, moving=False), probes)


def test_digits_are_split_flush_right() -> None:
    assert digits_of(np.array([7, 42, 100, -3])).tolist() == [
        [BLANK, BLANK, 7],
        [BLANK, 4, 2],
        [1, 0, 0],
        [BLANK, BLANK, 0],
    ]
    assert DIGITS == 3


def test_the_recorded_fight_is_perfect(data: HeldOut, probes: Probes) -> None:
    found = measured(data, probes, Replayed())
    assert found["flash_f1"]["f1"] == found["sound"]["bang_f1"]["f1"] == 1
    assert found["flash_f1"]["real"] > 20
    assert found["sound"]["log_mel"]["dream"]["mean"] == 0
    assert found["sound"]["flash_to_bang"] == {"dream": 0, "real": 0}
    assert all(found["boxes"][part]["8"]["mean"] == 100 for part in ("living", "bar", "picture"))
    for name in FIELDS:
        assert found["digits"][name]["128"]["right"]["mean"] == 1
    rates = found["rates"]
    assert rates["dream"] == rates["real"]
    assert rates["dream"]["counted_down_by_one"] > 0.95
    for what in ("kills", "shots", "health_lost"):
        assert rates["real"][what] == pytest.approx(rates["told"][what], rel=0.15), what


def test_sound_that_comes_late_is_told(data: HeldOut, probes: Probes) -> None:
    found = measured(data, probes, Replayed(late=3))["sound"]
    assert found["flash_to_bang"] == {"dream": 3, "real": 0}
    assert found["bang_f1"]["f1"] < 0.3
    assert found["log_mel"]["dream"]["mean"] > 0.5 * found["log_mel"]["shuffled"]["mean"]


def test_numbers_that_stand_still_are_told(data: HeldOut, probes: Probes) -> None:
    found = measured(data, probes, Replayed(bar_stands=True))
    assert found["digits"]["SELECTED_WEAPON_AMMO"]["128"]["right"]["mean"] == 0
    assert found["digits"]["SELECTED_WEAPON_AMMO"]["128"]["real_right"]["mean"] == 1
    assert found["rates"]["dream"]["shots"] == found["rates"]["dream"]["health_lost"] == 0
    assert found["boxes"]["bar"]["8"]["mean"] < 50


def test_other_seeds_part_and_the_same_seed_does_not(data: HeldOut) -> None:
    starts = windows(data, 64, 2, moving=False)
    assert diversity(Replayed(), starts)["psnr"]["64"]["mean"] == 100
    found = diversity(Replayed(noise=1), starts)
    assert found["same_seed_repeats"] and found["psnr"]["64"]["mean"] < 40


def test_the_report_has_what_happened_and_other_games_do_not(
    root: Path, probes: Probes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "train_probes", lambda *_: probes)
    plan = Plan(event_windows=2, event_ticks=100, branches=2)
    result = evaluate(Replayed(), root, True, tmp_path / "a", plan=plan, protocols=["events"])
    text = summary_markdown(result)
    assert (tmp_path / "a" / "sounds.png").stat().st_size > 1000
    assert "Sound of three windows" in (tmp_path / "a" / "report.html").read_text()
    assert "kills" in text and "from flash to bang | 0 ticks (game 0)" in text and "4 seeds" in text
    other = toy_data(tmp_path / "toy")
    with pytest.raises(DataError, match="nothing of it in toy"):
        evaluate(Replayed(), other, True, tmp_path / "b", plan=plan, protocols=["events"])
