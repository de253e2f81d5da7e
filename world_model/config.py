"""Every size and choice of a world in frozen dataclasses; the resolved config travels in `world.json`."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field, fields
from typing import Any, NoReturn, get_args, get_origin, get_type_hints

from world_model.types import FPS, Action, WorldError

AUDIO_CELL = 144
"""Samples to one column of the sound codec's inmost grid."""

MOST = 192_000
"""No size of a world is larger."""

LARGEST = 1e9
"""No other number is, of either sign."""

NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")
"""What a world may be called: its name becomes that of folders."""

MAY_BE_ZERO = frozenset(
    {
        "detail_dim",
        "conv_blocks",
        "head_blocks",
        "global_tokens",
        "retrieved",
        "recalled",
        "pose_octaves",
        "carry",
        "imagination",
        "boxes",
        "late",
    }
)
"""Sizes that may be zero; all others are one at least."""


@dataclass(frozen=True)
class TokenizerConfig:
    """Picture 256 x 160 <-> latent 16 x 10 (a factor of 16 each way). WorldError for sizes that are none."""

    width: int = 256
    height: int = 160
    latent_dim: int = 24
    encoder_channels: tuple[int, int, int] = (48, 96, 128)
    decoder_channels: tuple[int, int, int] = (128, 128, 48)
    """Channels on the grids 64 x 40, 32 x 20 and 16 x 10 (encoder), and back (decoder)."""
    detail_dim: tuple[int, int] = (0, 0)
    """Channels on the grids 64 x 40 and 128 x 80 that a map adds to what is decoded; 0 without a map."""
    blend: bool = False
    """Whether the decoder chooses at each pixel between the latent and the map's detail."""
    glass: bool = False
    """Whether it says at each pixel what is drawn on the glass, before all things of a cast."""

    def __post_init__(self) -> None:
        _check_fields(self)
        if self.width % 16 or self.height % 16:
            _refuse(self, "height" if self.height % 16 else "width", "a multiple of 16")

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the latent."""
        return self.height // 16, self.width // 16


@dataclass(frozen=True)
class DynamicsConfig:
    """The trunk (convolutions at 16 x 10 around Mamba-2 and attention at 8 x 5), the memory, the head.

    WorldError for sizes that do not fit.
    """

    conv_dim: int = 96
    conv_blocks: int = 2
    d_model: int = 192
    d_state: int = 16
    head_dim: int = 32
    layers: int = 3
    attention_heads: int = 6
    global_tokens: int = 2
    window: int = 16
    keyframes: int = 32
    """Size of the bank; `retrieved` of them are read in a tick, `recalled` looked at with `recall`."""
    retrieved: int = 4
    recalled: int = 8
    pose: bool = True
    """Whether the world has a sense of place, taught by the source's pose and depth: a map in its weights."""
    recall: bool = False
    """Whether it has a sense of place without a map, in a source that is another place every time: it looks
    at what its keyframes hold from where it is. A world has one of the two or neither."""
    imagination: int = 0
    """Channels of the network that makes up what no keyframe shows (`imagination.py`), or 0: fog."""
    align: bool = True
    """Whether a world that recalls puts its place right by an `Aligner` while real frames come in. One with a
    map always does."""
    strides: bool = False
    """Whether a world with a map moves by a `Stride`, as one that recalls does, and not by a network that
    feels for walls. LOG.md has what each is worth."""
    carry: int = 0
    """Channels of the network by whose depths the present is carried along with the player (`carry.py`), or 0
    in a world in which nothing else moves."""
    pose_octaves: int = 6
    plan_size: int = 256
    """Rows and columns of the floor plan of the map."""
    paint_bits: tuple[int, ...] = (11, 14, 15, 16, 14, 16)
    """Entries of each level of the map's paint, as powers of two."""
    tile: float = 0.125
    """Period of the textures, in half extents of the map."""
    heights: tuple[float, float] = (-0.1, 0.2)
    """Of floor and ceiling over the eye, in half extents of the map."""
    horizon: float = 0.5
    """Eye level, as a part of the picture's height from above: higher where a status bar takes its place."""
    head_dim_conv: int = 112
    head_blocks: int = 2

    def __post_init__(self) -> None:
        _check_fields(self)
        if self.d_model % self.attention_heads:
            _refuse(self, "attention_heads", f"a divisor of d_model {self.d_model}")
        if self.d_model % self.head_dim:
            _refuse(self, "head_dim", f"a divisor of d_model {self.d_model}")
        if self.imagination % 3:
            _refuse(self, "imagination", "a multiple of 3")  # twice that is shared by six heads
        if max(self.paint_bits, default=0) > 24:
            _refuse(self, "paint_bits", "powers of two up to 24")
        if self.tile <= 0:
            _refuse(self, "tile", "larger than zero")
        if not 0 < self.horizon <= 1:
            _refuse(self, "horizon", "a part of the picture's height")
        if not self.heights[0] < self.heights[1]:
            _refuse(self, "heights", "floor and ceiling")


@dataclass(frozen=True)
class CastConfig:
    """Things that move, come and go (`cast.py`). WorldError for sizes that do not fit."""

    names: tuple[str, ...] = ()
    """What the source calls each kind of them."""
    looks_each: int = 6
    """Looks of a kind."""
    slots: int = 20
    """At most so many things there are at a time."""
    ways: int = 64
    """Ways to move in a tick."""
    gates: int = 8
    """Places where things appear."""
    texels: int = 48
    """Rows and columns of the paint of a look."""
    hidden: int = 96
    gauges: tuple[str, ...] = ()
    """What the source calls each number that stands in its picture (`gauges.py`)."""
    boxes: tuple[int, ...] = ()
    """Where they stand: x, y, width and height of each in pixels, one after another, all of one size."""
    late: int = 1
    """Ticks by which the picture shows them later than the source tells them."""

    def __post_init__(self) -> None:
        _check_fields(self)
        if len(self.boxes) != 4 * len(self.gauges):
            _refuse(self, "boxes", "four numbers for each gauge")

    @property
    def kinds(self) -> int:
        return len(self.names)

    @property
    def looks(self) -> int:
        """Of all kinds together; they are numbered from 1, kind by kind."""
        return self.looks_each * self.kinds


@dataclass(frozen=True)
class AudioConfig:
    """Sound of a tick <-> latent, and the head that imagines it. WorldError for sizes that do not fit."""

    rate: int = 22050
    """Samples a second; a tick has `samples` of them in two channels."""
    latent_dim: int = 48
    overlap: int = 126
    """Samples by which a tick's sound reaches into the next; the sound comes so much late."""
    dim: int = 48
    head_dim: int = 176
    head_steps: int = 3

    def __post_init__(self) -> None:
        _check_fields(self)
        if self.rate % FPS or self.latent_dim < 2 or self.overlap > self.samples or self.frame % AUDIO_CELL:
            raise WorldError(
                f"world.json: AudioConfig does not fit: a tick of {self.rate} / {FPS} samples and an overlap "
                f"of {self.overlap} must make a multiple of {AUDIO_CELL}, with at least two latents"
            )

    @property
    def samples(self) -> int:
        """Of one tick, in each channel."""
        return self.rate // FPS

    @property
    def frame(self) -> int:
        """Samples that one latent decodes to: a tick and what it shares with the one before."""
        return self.samples + self.overlap


@dataclass(frozen=True)
class WorldConfig:
    """All of a world but its weights. WorldError for values that do not fit."""

    name: str
    actions: tuple[Action, ...]
    phases: int = 1
    pose_origin: tuple[float, float] = (0.0, 0.0)
    pose_scale: float = 1.0
    """Centre and half extent of the map in the source's units; the model sees the ratio."""
    head_steps: int = 2
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    dynamics: DynamicsConfig = field(default_factory=DynamicsConfig)
    audio: AudioConfig | None = None
    """None: the world has no sound."""
    cast: CastConfig | None = None
    """None: nothing moves that is kept apart from the picture."""

    def __post_init__(self) -> None:
        _check_fields(self)
        if not NAME.fullmatch(self.name):
            _refuse(self, "name", "a name of letters, digits and . _ - that does not begin with a dot")
        if not self.actions or not all(_is_action(action) for action in self.actions):
            _refuse(self, "actions", "a list of actions with a name and keys")
        if self.pose_scale <= 0:
            _refuse(self, "pose_scale", "larger than zero")

    def to_json(self) -> dict[str, Any]:
        data = asdict(self)
        if self.audio is None:  # what a silent world's file says is what it said before there was sound
            del data["audio"]
        if self.cast is None:
            del data["cast"]
        return data


def view_rows(config: WorldConfig) -> int | None:
    """Rows of the picture above its status bar; None where it has none."""
    rows = round(2 * config.tokenizer.height * config.dynamics.horizon)
    return rows if rows < config.tokenizer.height else None


def world_config_from_json(data: dict[str, Any]) -> WorldConfig:
    """The inverse of `to_json`. Raises WorldError that names an unknown, missing or mistyped entry."""
    try:
        rest = dict(data)
        rest["actions"] = tuple(_action(action) for action in data["actions"])
        rest["tokenizer"] = _build(TokenizerConfig, data["tokenizer"])
        rest["dynamics"] = _build(DynamicsConfig, data["dynamics"])
        rest["pose_origin"] = _tuple(data["pose_origin"])
        if data.get("audio") is not None:
            rest["audio"] = _build(AudioConfig, data["audio"])
        if data.get("cast") is not None:
            rest["cast"] = _build(CastConfig, data["cast"])
        return WorldConfig(**rest)
    except (TypeError, KeyError, AttributeError) as err:
        raise WorldError(f"world.json: the config does not fit this version of reverie: {err}") from err


def _build(kind: type[Any], data: dict[str, Any]) -> Any:
    unknown = set(data) - {f.name for f in fields(kind)}
    if unknown:
        raise WorldError(f"world.json: unknown entries in {kind.__name__}: {', '.join(sorted(unknown))}")
    return kind(**{k: _tuple(v) for k, v in data.items()})


def _action(data: dict[str, Any]) -> Action:
    return Action(data["name"], _tuple(data["default_keys"]))


def _tuple(value: Any) -> Any:
    """JSON has lists where a config has tuples; what is neither stays, to be refused for its type."""
    return tuple(value) if isinstance(value, list) else value


def _is_action(action: Any) -> bool:
    """Whether name and keys are what they should be: a file can hold anything."""
    keys = action.default_keys
    texts = (action.name, *keys) if isinstance(keys, tuple) else (None,)
    return all(isinstance(text, str) and text for text in texts)


def _check_fields(config: Any) -> None:
    """Raises WorldError for a field that is not of its type, or a size or number that cannot be one."""
    for name, kind in get_type_hints(type(config)).items():
        value = getattr(config, name)
        if get_origin(kind) is not tuple:
            _check_value(config, name, kind, value)
            continue
        inner = get_args(kind)
        if not isinstance(value, tuple) or (inner[-1] is not Ellipsis and len(value) != len(inner)):
            _refuse(config, name, f"a list of {'some' if inner[-1] is Ellipsis else len(inner)} values")
        for part in value:
            _check_value(config, name, inner[0], part)


def _check_value(config: Any, name: str, kind: Any, value: Any) -> None:
    if kind is int:
        least = 0 if name in MAY_BE_ZERO else 1
        if type(value) is not int or not least <= value <= MOST:
            _refuse(config, name, f"a whole number from {least} to {MOST:,}")
    elif kind is float:
        if type(value) not in (int, float) or not -LARGEST < value < LARGEST:  # NaN is on neither side
            _refuse(config, name, "a number of a sensible size")
    elif not isinstance(value, kind):
        _refuse(config, name, f"of type {getattr(kind, '__name__', kind)}")


def _refuse(config: Any, name: str, expected: str) -> NoReturn:
    value = getattr(config, name)
    raise WorldError(f"world.json: {name!r} of {type(config).__name__} is {value!r}, not {expected}")
