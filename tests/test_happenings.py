"""Protocol `events`: a toy fight whose every shot, number and fall is known, and dreamers that fail."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from toy_game import toy_data
from world_model.data.arena import BAR_LATE, FIELDS, FLASH, VARIABLES
from world_model.data.episodes import Episode, write_episode
from world_model.data.sources import Label, Observation
from world_model.evaluation import happenings
from world_model.evaluation.blind import MOVES
from world_model.evaluation.chances import diversity
from world_model.evaluation.digits import BLANK, DIGITS, Reading, digits_of
from world_model.evaluation.happenings import measure_happenings
from world_model.evaluation.plan import QUICK, Plan
from world_model.evaluation.probes import Probes, train_probes
from world_model.evaluation.protocol import Clip, Images, Ints
from world_model.evaluation.rates import blind_rates, death, falling, held
from world_model.evaluation.report import evaluate
from world_model.evaluation.scenery import alive, scenery_of
from world_model.evaluation.summary import summary_markdown
from world_model.evaluation.windows import HeldOut, held_out, windows
from world_model.types import Action, DataError

TICKS = 260
LENGTH = 130
"""Ticks of a window."""
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
        numbers[t, :3] = health, ammo, kills
        shown = numbers[max(0, t - BAR_LATE)]
        draw(int(shown[1]), frames[t], FIELDS["SELECTED_WEAPON_AMMO"])
        draw(int(shown[0]), frames[t], FIELDS["HEALTH"])
    header = {"source": "arena", "actions": ["idle", *MOVES], "fps": 25, "seed": seed, "labels": ["ArenaImp"]}
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


class Game:
    """The same fight as a source, whatever the player does; over after `end` ticks."""

    name, fps, licence, phases, variables = "arena", 25, "", 1, VARIABLES
    actions = tuple(Action(name) for name in ("idle", *MOVES))

    def __init__(self, end: int = TICKS) -> None:
        self._end = end
        self.closed = False

    def reset(self, seed: int) -> Observation:
        self._fight, self._tick = fight(seed), 0
        return self._now()

    def step(self, action: int) -> Observation:
        self._tick += 1
        return self._now()

    def close(self) -> None:
        self.closed = True

    def _now(self) -> Observation:
        t, episode = self._tick, self._fight
        assert episode.variables is not None and episode.labels is not None
        assert t <= self._end, "the game is over"
        labels = tuple(Label("ArenaImp", *row[1:]) for row in episode.labels[t].tolist() if row[0])
        return Observation(
            episode.frames[t], labels=labels, variables=episode.variables[t], terminated=t == self._end
        )


class Replayed:
    """Shows and sounds what was recorded, late by so many ticks in sound and with a picture edited."""

    name = "replayed"

    def __init__(self, late: int = 0, bar_stands: bool = False, noise: int = 0, gone: bool = False) -> None:
        self._late, self._stands, self._noise, self._gone = late, bar_stands, noise, gone

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

    def reconstruct(self, obs: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Coarse where something is, and a little off everywhere."""
        made = np.array(obs) + 1
        x, y, width, height = BOX
        made[..., y : y + height, x : x + width, :] += 40
        return made

    @property
    def heard(self) -> NDArray[np.int16]:
        silence = np.zeros((SAMPLES, 2), np.int16)
        at = [c.context - 2 + self._tick - self._late for c in self._clips]
        return np.stack(
            [silence if c.sound is None else c.sound[t] for c, t in zip(self._clips, at, strict=True)]
        )

    def _show(self) -> Images:
        images = np.stack([c.real(self._tick) for c in self._clips])
        if self._stands:
            images[:, 134:] = np.stack([c.real(0)[134:] for c in self._clips])
        if self._gone:
            images[:, :134] = 60
            images[:, 134:] = images[:, 134:].mean((1, 2, 3), keepdims=True).astype(np.uint8)
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
    return train_probes(root, scenery_of(data), steps=(150, 150))


def measured(data: HeldOut, probes: Probes, dreamer: Any) -> dict[str, Any]:
    return measure_happenings(dreamer, data, windows(data, LENGTH, 4, moving=False), probes)


@pytest.fixture(scope="module")
def perfect(data: HeldOut, probes: Probes) -> dict[str, Any]:
    return measured(data, probes, Replayed())


def test_digits_are_split_flush_right() -> None:
    assert digits_of(np.array([7, 42, 100, -3])).tolist() == [
        [BLANK, BLANK, 7],
        [BLANK, 4, 2],
        [1, 0, 0],
        [BLANK, BLANK, 0],
    ]
    assert DIGITS == 3


def test_the_recorded_fight_is_perfect(perfect: dict[str, Any]) -> None:
    found = perfect
    for f1 in (found["flash_f1"], found["sound"]["bang_f1"]):
        assert f1["dream"] == f1["real"] and f1["dream"]["mean"] > 0.85  # a monster that comes is bright too
        assert f1["dream"]["mean"] > f1["chance"]["mean"] + 0.3
        assert f1["counts"]["shots"] > 20
    assert found["sound"]["log_mel"]["dream"]["mean"] == 0
    lag = found["sound"]["flash_to_bang"]
    assert lag["dream"] == lag["real"] and lag["real"]["ticks"] == 0 and lag["real"]["pairs"] > 20
    assert all(found["boxes"][part]["8"]["psnr"]["mean"] == 100 for part in ("living", "bar", "picture"))
    for name in FIELDS:
        assert found["digits"][name]["128"]["right"]["mean"] == 1
        assert found["digits"][name]["128"]["real_right"]["mean"] == 1
    assert found["sound"]["bang_f1"]["dream"]["mean"] == 1
    assert found["per_clip"]["bang_f1"] == [1] * 4


def test_the_status_bar_is_read_late(data: HeldOut, probes: Probes, perfect: dict[str, Any]) -> None:
    early = replace(data, episodes=tuple(_early(e) for e in data.episodes))
    ammo = "SELECTED_WEAPON_AMMO right"
    assert min(perfect["per_clip"][ammo]) > 0.98
    assert max(measured(early, probes, Replayed())["per_clip"][ammo]) < 0.95


def _early(episode: Episode) -> Episode:
    """Variables a tick earlier than the game tells them."""
    assert episode.variables is not None
    return replace(episode, variables=np.concatenate([episode.variables[1:], episode.variables[-1:]]))


def test_what_cannot_be_read_is_not_right(data: HeldOut, probes: Probes) -> None:
    found = measured(data, probes, Replayed(gone=True))["digits"]
    for name in FIELDS:
        assert found[name]["128"]["legible"]["mean"] == 0
        assert found[name]["128"]["right"]["mean"] == found[name]["128"]["within_3"]["mean"] == 0


def test_a_blind_player_fares_alike_in_the_game_and_in_its_replay(data: HeldOut, probes: Probes) -> None:
    found = blind(data, probes, Replayed())
    assert found["dream"] == found["real"]
    assert found["dream"]["counted_down_by_one"] > 0.95
    for what in ("kills", "shots", "health_lost"):
        assert found["real"][what]["mean"] == pytest.approx(found["told"][what]["mean"], rel=0.15), what
    assert found["ticks"] == dict.fromkeys(("dream", "real", "told"), 4 * LENGTH)
    assert len(found["per_clip"]["dream"]["kills"]) == 4


def test_a_blind_player_in_a_dream_without_monsters_gets_no_kills(
    data: HeldOut, probes: Probes, perfect: dict[str, Any]
) -> None:
    floor = perfect["kill_probe"]["floor"]
    found = blind(data, probes, Replayed(gone=True), floor)
    assert found["dream"]["kills"] is None
    assert found["real"]["kills"]["mean"] > floor
    assert found["dream"]["shots"] is None, "no number can be read"
    assert found["dream"]["counted_down_by_one"] is None


def test_the_game_is_left_where_the_player_dies(data: HeldOut, probes: Probes) -> None:
    clips = windows(data, LENGTH, 4, moving=False)
    scenery, end = scenery_of(data), 140
    found = blind_rates(Replayed(), clips, data.actions, probes, scenery, Game(end), 0.0)
    lived = [end - c.start - 31 for c in clips]
    assert max(lived) <= LENGTH
    assert found["ticks"] == {"dream": 4 * LENGTH, "real": sum(lived) - 4, "told": sum(lived)}


def blind(data: HeldOut, probes: Probes, dreamer: Any, floor: float = 0.0) -> dict[str, Any]:
    clips = windows(data, LENGTH, 4, moving=False)
    return blind_rates(dreamer, clips, data.actions, probes, scenery_of(data), Game(), floor)


def test_the_kill_probe_sees_kills_and_not_their_pictures(perfect: dict[str, Any]) -> None:
    found = perfect["kill_probe"]
    assert found["real"] == pytest.approx(found["told"], rel=0.25)
    controls = found["controls"]
    assert set(controls) == {"backwards", "shuffled", "frozen", "noise", "blurred"}
    assert found["floor"] == max(controls.values())
    # What runs backwards takes a longer training than a test's to be told.
    assert max(controls[name] for name in ("frozen", "noise", "blurred")) < 0.2 * found["real"]


def test_a_flicker_is_no_wound() -> None:
    values = np.array([50, 50, 50, 8, 50, 50, 50, 47, 47, 47])
    legible = np.ones(10, bool)
    assert falling(held(Reading(values, legible))).tolist() == [-3]
    legible[5] = False
    assert falling(held(Reading(values, legible), 1)).tolist() == [-42, -3]
    assert held(Reading(values, legible & False)).tolist() == []


def test_a_player_is_dead_once_a_zero_stands() -> None:
    values = np.array([9, 0, 9, 9, 0, 0, 0, 0])
    assert death(Reading(values, np.ones(8, bool))) == 4
    assert death(Reading(values, np.zeros(8, bool))) is None
    assert death(Reading(values[:2], np.ones(2, bool))) is None


def test_the_picture_that_ends_a_game_is_left_out(data: HeldOut) -> None:
    dead = replace(data.episodes[0], header=data.episodes[0].header | {"terminated": True})
    kept = alive(HeldOut(("a", "b"), (dead, data.episodes[1])))
    assert [len(e.frames) for e in kept.episodes] == [TICKS, TICKS + 1]
    assert len(kept.episodes[0]) == TICKS - 1 == len(np.asarray(kept.episodes[0].sound))


def test_episodes_without_numbers_teach_the_probes_nothing(root: Path, tmp_path: Path, data: HeldOut) -> None:
    played = replace(fight(30), variables=None, labels=None)
    write_episode(tmp_path / "train" / "ep_030", replace(played, header={"source": "arena", "seed": 30}))
    with pytest.raises(DataError, match="no training episode tells HEALTH, KILLCOUNT"):
        train_probes(tmp_path, scenery_of(data), steps=(2, 2))
    write_episode(tmp_path / "train" / "ep_031", fight(31))
    train_probes(tmp_path, scenery_of(data), steps=(2, 2))


def test_sound_that_comes_late_is_told(data: HeldOut, probes: Probes) -> None:
    found = measured(data, probes, Replayed(late=3))["sound"]
    assert (found["flash_to_bang"]["dream"]["ticks"], found["flash_to_bang"]["real"]["ticks"]) == (3, 0)
    assert found["bang_f1"]["dream"]["mean"] < 0.3
    assert found["log_mel"]["dream"]["mean"] > 0.5 * found["log_mel"]["shuffled"]["mean"]


def test_sound_is_measured_where_there_is_some(data: HeldOut, probes: Probes) -> None:
    half = replace(data, episodes=(replace(data.episodes[0], sound=None), data.episodes[1]))
    found = measured(half, probes, Replayed())
    assert found["sound"]["clips"] == 2 and found["sound"]["bang_f1"]["dream"]["n"] == 2
    assert found["per_clip"]["bang_f1"][:2] == [None, None]
    silent = replace(data, episodes=tuple(replace(e, sound=None) for e in data.episodes))
    clips, omitted = windows(silent, LENGTH, 4, moving=False), dict[str, str]()
    assert "sound" not in measure_happenings(Replayed(), silent, clips, probes, omitted=omitted)
    assert omitted == {"sound of events": "the held-out episodes have none"}


def test_numbers_that_stand_still_are_told(data: HeldOut, probes: Probes) -> None:
    found = measured(data, probes, Replayed(bar_stands=True))
    assert found["digits"]["SELECTED_WEAPON_AMMO"]["128"]["right"]["mean"] == 0
    assert found["digits"]["SELECTED_WEAPON_AMMO"]["128"]["real_right"]["mean"] == 1
    assert found["boxes"]["bar"]["8"]["psnr"]["mean"] < 50
    rates = blind(data, probes, Replayed(bar_stands=True))
    assert rates["dream"]["shots"]["mean"] == rates["dream"]["health_lost"]["mean"] == 0


def test_other_seeds_part_and_the_same_seed_does_not(data: HeldOut) -> None:
    starts = windows(data, 64, 2, moving=False)
    alike = diversity(Replayed(), starts)
    assert alike["psnr"]["64"]["mean"] == 100
    assert [own["sharpness"] for own in alike["own"]] == [1] * 4
    assert [own["bangs"] for own in alike["own"]] == [alike["real"]["bangs"]] * 4
    found = diversity(Replayed(noise=1), starts)
    assert found["same_seed_repeats"] and found["psnr"]["64"]["mean"] < 40
    assert min(own["sharpness"] for own in found["own"]) > 2, "noise is told from chance"
    assert found["starts"]["64"] < found["psnr"]["64"]["mean"] + 20


def test_the_report_has_what_happened_and_other_games_do_not(
    root: Path, probes: Probes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    games: list[Game] = []
    monkeypatch.setattr(happenings, "train_probes", lambda *_: probes)

    def make(name: str, sound: bool) -> Game:
        assert name == "arena" and not sound
        games.append(Game())
        return games[-1]

    monkeypatch.setattr(happenings, "make_source", make)
    plan = Plan(event_windows=2, event_ticks=100, branches=2)
    result = evaluate(Replayed(), root, True, tmp_path / "a", "arena", plan, protocols=["events"])
    text = summary_markdown(result)
    assert games and all(game.closed for game in games)
    assert (tmp_path / "a" / "sounds.png").stat().st_size > 1000
    assert "Sound of three windows" in (tmp_path / "a" / "report.html").read_text()
    assert "| kills |" in text and "pairs, correlation" in text and "4 seeds" in text
    assert "below the whole picture" in text and "missed" in text
    assert "omitted" not in result
    other = toy_data(tmp_path / "toy")
    with pytest.raises(DataError, match="nothing of it in toy"):
        evaluate(Replayed(), other, True, tmp_path / "b", plan=plan, protocols=["events"])


def test_a_small_plan_measures_sprites_alone(root: Path, tmp_path: Path, data: HeldOut) -> None:
    found = happenings.measure_all(Replayed(), data, root, QUICK, tmp_path)
    assert list(found) == ["sprites"]
    assert found["sprites"]["living"]["gap"]["mean"] > 3 > found["sprites"]["picture"]["gap"]["mean"]


def test_without_the_source_the_blind_player_is_omitted(
    root: Path, probes: Probes, data: HeldOut, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(happenings, "train_probes", lambda *_: probes)
    plan = Plan(event_windows=2, event_ticks=60, branches=2)
    found = happenings.measure_all(Replayed(), data, root, plan, tmp_path)
    assert found["omitted"] == {"kills, wounds and shots of a blind player": "they need the source"}
    assert "rates" not in found["events"]
