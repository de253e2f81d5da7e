"""The source `arena`: its map, its players, its sound, and what collecting keeps of it."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from world_model.data import collect as collecting
from world_model.data import vizdoom_source
from world_model.data.arena import FIGHT, FLASH, ITEMS, MONSTERS, VARIABLES, arena
from world_model.data.arena_map import arena_wad
from world_model.data.collect import record_episode
from world_model.data.episodes import read_episode, write_episode
from world_model.data.fight_report import fight_report, shot_ticks
from world_model.data.fighters import Fighter
from world_model.data.sources import Label, Observation, Source, make_source
from world_model.data.vizdoom_source import VizdoomSource
from world_model.evaluation.events import crop, sound_onsets
from world_model.types import SourceError

ACTIONS = tuple(action for action, _ in FIGHT)
INDEX = {action.name: i for i, action in enumerate(ACTIONS)}


def openal() -> bool:
    try:
        ctypes.CDLL("libopenal.so.1")
    except OSError:
        return False
    return True


@pytest.fixture(scope="module")
def silent() -> Iterator[VizdoomSource]:
    pytest.importorskip("vizdoom")
    source = arena(sound=False)
    yield source
    source.close()


class Range:
    """A stub game: a monster stands still, the player turns; a shot at the centre fells it."""

    name, fps, licence, phases, actions, variables = "arena", 25, "none", 5, ACTIONS, VARIABLES

    def reset(self, seed: int) -> Observation:
        rng = np.random.default_rng(seed)
        self._x, self._ammo, self._kills, self._health = int(rng.integers(0, 240)), 50, 0, 100
        return self._see()

    def step(self, action: int) -> Observation:
        name = ACTIONS[action].name
        self._x += {"left": 6, "shoot_left": 6, "right": -6, "shoot_right": -6}.get(name, 0)
        self._x %= 250
        if name.startswith("shoot"):
            self._ammo -= 1
            if abs(self._x + 8 - 128) < 16:
                self._kills += 1
                self._x, self._health = (self._x * 7 + 50) % 240, self._health - 30
        return self._see()

    def close(self) -> None:
        pass

    def _see(self) -> Observation:
        label = Label("ArenaImp", self._x, 60, 16, 30)
        numbers = np.array([self._health, self._ammo, self._kills, 0, self._health <= 0], np.int32)
        image = np.zeros((160, 256, 3), np.uint8)
        return Observation(image, labels=(label,), variables=numbers, terminated=self._health <= 0)


def test_actions_differ_in_names_keys_and_buttons() -> None:
    assert len(ACTIONS) <= 12
    assert len({a.name for a in ACTIONS}) == len({frozenset(a.default_keys) for a in ACTIONS}) == len(ACTIONS)
    assert len({buttons for _, buttons in FIGHT}) == len(ACTIONS)


def test_the_map_is_a_wad_and_always_the_same() -> None:
    wad = arena_wad()
    assert wad == arena_wad() and wad[:4] == b"PWAD"
    assert wad.index(b"MAP01") > 0 and wad.count(b"sidefront") == 24


def test_a_fighter_aims_before_it_shoots() -> None:
    fighter = Fighter(ACTIONS, 1, MONSTERS, ITEMS)
    fighter._plan = fighter._fight(30)
    fighter._obs = None
    image = np.zeros((160, 256, 3), np.uint8)
    left = Observation(image, labels=(Label("ArenaImp", 10, 60, 16, 30),))
    keys = [ACTIONS[fighter.act(left)].default_keys for _ in range(10)]
    assert all("left" in held for held in keys)
    fighter._plan = fighter._fight(60)
    ahead = Observation(image, labels=(Label("ArenaImp", 120, 60, 16, 30),))
    assert INDEX["shoot"] in [fighter.act(ahead) for _ in range(60)]


def test_a_fighter_leaves_the_fallen_alone() -> None:
    fighter = Fighter(ACTIONS, 1, MONSTERS, ITEMS)
    fighter._plan = fighter._fight(60)
    fallen = Observation(np.zeros((160, 256, 3), np.uint8), labels=(Label("DeadArenaImp", 120, 90, 16, 9),))
    assert INDEX["shoot"] not in [fighter.act(fallen) for _ in range(60)]


def test_an_episode_ends_with_death_and_keeps_labels_and_numbers(tmp_path: Path) -> None:
    write_episode(tmp_path / "ep_0", record_episode(Range(), seed=0, ticks=2000))
    episode = read_episode(tmp_path / "ep_0")
    assert episode.header["terminated"] and len(episode) < 2000
    assert episode.header["variables"] == list(VARIABLES) and episode.header["labels"] == ["ArenaImp"]
    assert episode.variables is not None and episode.labels is not None
    assert episode.variables.shape == (len(episode) + 1, 5) and episode.variables[-1, 0] <= 0
    assert episode.labels.shape == (len(episode) + 1, 1, 5) and set(episode.labels[:, 0, 0]) == {1}
    shooting = np.char.startswith([ACTIONS[a].name for a in episode.actions], "shoot")
    np.testing.assert_array_equal(shot_ticks(episode), shooting)


def test_the_report_counts_fights(tmp_path: Path) -> None:
    episode = record_episode(Range(), seed=0, ticks=2000)
    write_episode(tmp_path / "ep_0", episode)
    report = fight_report([tmp_path / "ep_0"])
    minutes = len(episode) / 25 / 60
    assert report["kills_a_minute"] == pytest.approx(4 / minutes, rel=0.01)
    assert report["deaths_a_minute"] == pytest.approx(1 / minutes, rel=0.01)
    assert report["health_lost_a_minute"] == pytest.approx(120 / minutes, rel=0.01)


def test_without_sound_the_game_is_opened_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[bool] = []

    def fake(sound: bool = True) -> Source:
        opened.append(sound)
        return Range()

    monkeypatch.setattr("world_model.data.arena.arena", fake)
    make_source("arena")
    collecting._open("arena", False)
    assert opened == [True, False]


def test_missing_openal_is_told_before_silence_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(vizdoom_source.sys, "platform", "linux")
    monkeypatch.setattr(vizdoom_source.ctypes, "CDLL", missing)
    with pytest.raises(SourceError, match=r"libopenal1.*--no-sound"):
        vizdoom_source._check_openal(tmp_path)


@pytest.mark.doom
def test_a_shot_flashes_and_costs_a_round_in_its_own_tick(silent: VizdoomSource) -> None:
    before = silent.reset(3)
    for _ in range(12):  # the pistol comes up
        before = silent.step(INDEX["idle"])
    after = silent.step(INDEX["shoot"])
    assert before.variables is not None and after.variables is not None
    assert after.variables[1] == before.variables[1] - 1
    assert crop(after.image, FLASH).mean() > crop(before.image, FLASH).mean() + 25


@pytest.mark.doom
def test_the_same_seed_gives_the_same_fight(silent: VizdoomSource) -> None:
    episodes = [record_episode(silent, 7, 150) for _ in range(2)]
    for name in ("frames", "actions", "pose", "labels", "variables"):
        np.testing.assert_array_equal(getattr(episodes[0], name), getattr(episodes[1], name))


@pytest.mark.doom
def test_standing_still_is_deadly_and_ends_the_episode(silent: VizdoomSource) -> None:
    obs = silent.reset(5)
    for _ in range(3000):
        obs = silent.step(INDEX["idle"])
        if obs.terminated:
            break
    assert obs.terminated and obs.image.shape == (160, 256, 3)
    assert obs.variables is not None and obs.variables[0] <= 0
    assert not silent.reset(6).terminated


@pytest.mark.doom
def test_the_bang_comes_in_the_tick_of_the_shot() -> None:
    pytest.importorskip("vizdoom")
    if not openal():
        pytest.skip("OpenAL is not installed")
    source = arena()
    try:
        source.reset(3)
        script = [INDEX["idle"]] * 14 + [INDEX["shoot"]] + [INDEX["idle"]] * 5
        ticks = [source.step(action) for action in script]
    finally:
        source.close()
    sound = np.stack([obs.sound for obs in ticks if obs.sound is not None])
    assert sound.shape == (len(script), 882, 2)
    assert np.flatnonzero(sound_onsets(sound)).tolist() in ([13], [14], [15])
