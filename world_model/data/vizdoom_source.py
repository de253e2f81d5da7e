"""ViZDoom scenarios as sources: walk and turn in Doom rooms drawn with Freedoom textures.

Doom runs at 35 tics a second, the world at 25 ticks: a tick covers 1, 1, 2, 1, 2 tics in turn (seven
tics in five ticks). The position in that pattern is the phase.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from world_model.data.sources import Label, Observation, Thing, check_action
from world_model.types import FPS, Action, SourceError

TICS = (1, 1, 2, 1, 2)
SAMPLES_PER_TIC = 630  # 22,050 Hz / 35
SAMPLES_PER_TICK = 882  # 22,050 Hz / 25
# The pattern above runs at most 504 samples behind an even 25 Hz cut, so the stream starts that late.
SOUND_DELAY = 504

VIEW_WITH_HUD = 134  # rows of the picture above the status bar
UNITS_PER_DEPTH = 8.0  # for walkers, roughly; the buffer saturates below two of its units
DEPTH_STEP, DEPTH_START = 7.124, 6.93  # fitted to rays cast at the map's lines: off by 1.8 in the median

WALK = (
    (Action("idle"), ()),
    (Action("forward", ("up",)), ("MOVE_FORWARD",)),
    (Action("back", ("down",)), ("MOVE_BACKWARD",)),
    (Action("left", ("left",)), ("TURN_LEFT",)),
    (Action("right", ("right",)), ("TURN_RIGHT",)),
    (Action("forward_left", ("up", "left")), ("MOVE_FORWARD", "TURN_LEFT")),
    (Action("forward_right", ("up", "right")), ("MOVE_FORWARD", "TURN_RIGHT")),
)


@dataclass(frozen=True)
class DoomSetup:
    """What a world made with ViZDoom consists of.

    scenario: a file in ViZDoom's own folder of scenarios, or the path of a WAD. actions: each with the
    names of the ViZDoom buttons that it holds. hud and weapon: whether status bar and weapon are drawn.
    labels: whether observations tell the boxes of what is seen, and the things that are in the map, but for
    those of the names `unseen`. variables: ViZDoom's names of the game
    variables that observations tell, besides the pose. fields: x, y, width and height of where the picture
    shows some of them. sound needs OpenAL. room_units: from floor to ceiling.
    """

    name: str
    scenario: str | Path
    actions: tuple[tuple[Action, tuple[str, ...]], ...] = WALK
    map_name: str = "map01"
    game_args: str = ""
    sound: bool = False
    hud: bool = False
    weapon: bool = False
    labels: bool = False
    unseen: tuple[str, ...] = ()
    variables: tuple[str, ...] = ()
    fields: Mapping[str, tuple[int, int, int, int]] = field(default_factory=dict)
    room_units: float = 128.0
    licence: str = "Freedoom textures, BSD-3-Clause; ViZDoom scenario, MIT"

    @property
    def buttons(self) -> tuple[str, ...]:
        """Names of the ViZDoom buttons that the actions use, in order of appearance."""
        return tuple(dict.fromkeys(button for _, held in self.actions for button in held))


class VizdoomSource:
    """One ViZDoom map, 256 x 160, 25 Hz. The player's death ends the episode: `terminated`.

    Raises SourceError when ViZDoom is not installed, when it does not start, or when sound is asked for
    and OpenAL is missing.
    """

    fps = FPS
    phases = len(TICS)

    def __init__(self, setup: DoomSetup) -> None:
        self.setup = setup
        self.name = setup.name
        self.licence = setup.licence
        self.actions = tuple(action for action, _ in setup.actions)
        self.variables = setup.variables
        self.fields = setup.fields
        self.room_units = setup.room_units
        self.view_rows = VIEW_WITH_HUD if setup.hud else 160
        self._buttons = [[float(b in held) for b in setup.buttons] for _, held in setup.actions]
        self._phase = 0
        self._stream = np.zeros((0, 2), np.int16)
        self._last: Observation | None = None
        self._game = _open(setup)

    def reset(self, seed: int) -> Observation:
        """Starts a new episode at a place and heading drawn from `seed`."""
        self._game.set_seed(seed % 2**32)
        self._game.new_episode()
        self._phase = 0
        self._stream = np.zeros((SOUND_DELAY, 2), np.int16)
        return self._observe(None)

    def step(self, action: int) -> Observation:
        """Holds the action's buttons for one tick of 40 ms. Raises ValueError for an unknown action."""
        tics = TICS[self._phase]
        reward = self._game.make_action(self._buttons[check_action(action, self.actions)], tics)
        self._phase = (self._phase + 1) % len(TICS)
        return self._observe(tics, reward)

    def close(self) -> None:
        self._game.close()

    def _observe(self, tics: int | None, reward: float = 0.0) -> Observation:
        state = self._game.get_state()
        if state is None:
            return self._ended(reward)
        x, y, degrees = state.game_variables[:3]
        self._last = Observation(
            image=np.ascontiguousarray(state.screen_buffer),
            pose=np.array([x, y, math.radians(degrees)], np.float32),
            sound=self._cut_sound(state.audio_buffer, tics) if self.setup.sound and tics else None,
            reward=reward,
            phase=self._phase,
            depth=(state.depth_buffer[2::4, 2::4] * DEPTH_STEP + DEPTH_START).astype(np.float16),
            clearance=_clearance(state.depth_buffer[: self.view_rows]),
            labels=_labels(state.labels) if self.setup.labels else (),
            things=_things(state.objects, self.setup.unseen) if self.setup.labels else (),
            variables=state.game_variables[3:].astype(np.int32) if self.variables else None,
        )
        return self._last

    def _ended(self, reward: float) -> Observation:
        """The end of an episode: the game shows no more, so the last picture stays; the numbers are new."""
        if self._last is None or not self._game.is_player_dead():
            raise SourceError(f"{self.name}: the game ended by itself; collect with another seed")
        values = [self._game.get_game_variable(v) for v in self._game.get_available_game_variables()[3:]]
        silence = np.zeros((max(TICS) * SAMPLES_PER_TIC, 2), np.int16)
        return replace(
            self._last,
            sound=self._cut_sound(silence, max(TICS)) if self.setup.sound else None,
            reward=reward,
            terminated=True,
            phase=self._phase,
            variables=np.array(values, np.int32) if values else None,
        )

    def _cut_sound(self, buffer: NDArray[np.int16], tics: int) -> NDArray[np.int16]:
        self._stream = np.concatenate([self._stream, buffer[-tics * SAMPLES_PER_TIC :]])
        tick, self._stream = self._stream[:SAMPLES_PER_TICK], self._stream[SAMPLES_PER_TICK:]
        return tick


def rooms(sound: bool = False) -> VizdoomSource:
    """ViZDoom's `my_way_home`: nine textured rooms and the corridors between them.

    The armour that would end the episode is not spawned, and the view does not bob: the height of the eye
    would hang on a clock that no pose tells.
    """
    args = "+alwaysapplydmflags 1 +sv_noarmor 1 +movebob 0"
    return VizdoomSource(DoomSetup("rooms", "my_way_home.wad", game_args=args, sound=sound))


def _labels(found: list[Any]) -> tuple[Label, ...]:
    """The things in the picture; the player's own hand is left out."""
    return tuple(
        Label(label.object_name, int(label.x), int(label.y), int(label.width), int(label.height))
        for label in found
        if label.object_category != "Self"
    )


def _things(found: list[Any], unseen: tuple[str, ...]) -> tuple[Thing, ...]:
    return tuple(
        Thing(int(o.id), o.name, float(o.position_x), float(o.position_y), float(o.position_z))
        for o in found
        if o.name not in unseen
    )


def _clearance(depth: NDArray[np.uint8]) -> tuple[float, float, float]:
    """Nearest thing at eye height in the left, middle and right of the picture, in map units."""
    horizon = depth[depth.shape[0] // 2 - 4 : depth.shape[0] // 2 + 4].min(0) * UNITS_PER_DEPTH
    left, ahead, right = np.split(horizon, (depth.shape[1] * 3 // 8, depth.shape[1] * 5 // 8))
    return float(left.mean()), float(ahead.min()), float(right.mean())


def _open(setup: DoomSetup) -> Any:
    try:
        import vizdoom as vzd
    except ImportError as err:
        raise SourceError('ViZDoom is not installed; run pip install "reverie[doom]"') from err
    if setup.sound:
        _check_openal(Path(vzd.__file__).parent)
    game = vzd.DoomGame()
    game.set_doom_scenario_path(str(Path(vzd.scenarios_path) / setup.scenario))
    game.set_doom_map(setup.map_name)
    # Otherwise the game leaves its settings in the current folder.
    game.set_doom_config_path(str(Path(tempfile.gettempdir()) / f"reverie-{os.getpid()}.ini"))
    game.set_screen_resolution(vzd.ScreenResolution.RES_256X160)
    game.set_screen_format(vzd.ScreenFormat.RGB24)
    game.set_window_visible(False)
    game.set_episode_timeout(0)
    game.set_episode_start_time(10)
    game.set_render_hud(setup.hud)
    game.set_render_weapon(setup.weapon)
    for off in ("crosshair", "decals", "particles", "messages"):
        getattr(game, f"set_render_{off}")(False)
    game.set_depth_buffer_enabled(True)
    game.set_labels_buffer_enabled(setup.labels)
    game.set_objects_info_enabled(setup.labels)
    game.set_available_buttons([getattr(vzd.Button, b) for b in setup.buttons])
    names = ("POSITION_X", "POSITION_Y", "ANGLE", *setup.variables)
    game.set_available_game_variables([getattr(vzd.GameVariable, n) for n in names])
    game_args = setup.game_args
    if setup.sound:
        game.set_audio_buffer_enabled(True)
        game.set_audio_sampling_rate(vzd.SamplingRate.SR_22050)
        game.set_audio_buffer_size(max(TICS))
        game_args += " +snd_efx 0"  # works around a silent buffer
    game.add_game_args(game_args)
    try:
        # Two games that make it at once, or one that cannot, take the process down with them.
        Path("_vizdoom").mkdir(exist_ok=True)
    except OSError as err:
        hint = "start from a folder that can be written to"
        raise SourceError(f"ViZDoom needs a folder _vizdoom here: {err.strerror}; {hint}") from err
    try:
        game.init()
    except Exception as err:  # ViZDoom raises bare exceptions of its own making
        hint = "; is OpenAL installed (Debian: libopenal1)? --no-sound goes on without" if setup.sound else ""
        raise SourceError(f"ViZDoom did not start: {err}{hint}") from err
    return game


def _check_openal(folder: Path) -> None:
    """Raises SourceError without OpenAL: ViZDoom itself would go on and record silence.

    On Linux alone, where it takes the library from its own `folder` or from the system.
    """
    if sys.platform != "linux":
        return
    for name in (str(folder / "libopenal.so.1"), "libopenal.so.1"):
        with contextlib.suppress(OSError):
            ctypes.CDLL(name)
            return
    raise SourceError("no sound without OpenAL; install it (Debian: libopenal1) or go on with --no-sound")
