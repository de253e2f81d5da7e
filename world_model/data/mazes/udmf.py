"""Layout -> the text of a UDMF map (`TEXTMAP`), which ViZDoom loads without a node builder.

Edges between tiles that look different become lines; neighbouring edges that are alike become one line.
A line's front is on its right.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from world_model.data.mazes.build import SIDES, TILE, Panel
from world_model.data.mazes.layout import Layout
from world_model.data.mazes.themes import SKY_FLAT

Point = tuple[int, int]
Value = int | float | bool | str
PLAYER = 1
STATIC_INIT, SKY_TRANSFER, SKY_TAG = 190, 255, 1
PERIOD = 256
"""All walls repeat after so many units at most, and are laid out from the map's origin."""


@dataclass(frozen=True)
class _Edge:
    """What two edges must share to be one line: areas on its right and left (or -1), their textures."""

    front: int
    back: int
    wall: str
    panel: Panel | None
    vertical: bool
    forward: bool
    """Toward the north or the east."""


def textmap(layout: Layout) -> str:
    """The map's text. Deterministic."""
    blocks = ['namespace = "zdoom";\n']
    vertices: dict[Point, int] = {}
    sides: list[dict[str, Value]] = []
    lines: list[dict[str, Value]] = []
    for start, end, edge, origin in _lines(layout):
        line: dict[str, Value] = {}
        line["v1"], line["v2"] = (vertices.setdefault(p, len(vertices)) for p in (start, end))
        line["sidefront"] = len(sides)
        sides.append(_side(layout, edge, start, origin))
        if edge.back < 0:
            line |= {"blocking": True, "dontpegbottom": True}
            if not lines:  # the first wall also tells the sky; a wall's upper texture is never seen
                sides[-1]["texturetop"] = layout.sky
                line |= {"special": STATIC_INIT, "arg0": SKY_TAG, "arg1": SKY_TRANSFER}
        else:
            line |= {"sideback": len(sides), "twosided": True}
            sides.append(_side(layout, edge, end, back=True))
        lines.append(line)
    blocks += [_block("vertex", {"x": float(x), "y": float(y)}) for x, y in vertices]
    blocks += [_block("linedef", line) for line in lines]
    blocks += [_block("sidedef", side) for side in sides]
    blocks += [_block("sector", sector) for sector in _sectors(layout)]
    blocks += [_block("thing", thing) for thing in _things(layout)]
    return "".join(blocks)


def _sectors(layout: Layout) -> Iterable[dict[str, Value]]:
    for area in layout.areas:
        sector: dict[str, Value] = {
            "heightfloor": area.floor,
            "heightceiling": area.ceiling,
            "texturefloor": area.floor_flat,
            "textureceiling": area.ceiling_flat,
            "lightlevel": area.light,
        }
        if area.ceiling_flat == SKY_FLAT:
            sector["id"] = SKY_TAG
        yield sector


def _things(layout: Layout) -> Iterable[dict[str, Value]]:
    always: dict[str, Value] = {f"skill{n}": True for n in range(1, 6)}
    always |= {"single": True, "coop": True, "dm": True}
    always |= {f"class{n}": True for n in range(1, 4)}
    x, y, angle = layout.start
    yield always | {"x": float(x), "y": float(y), "angle": angle, "type": PLAYER}
    for thing in layout.things:
        yield always | {"x": float(thing.x), "y": float(thing.y), "angle": 0, "type": thing.number}


def _lines(layout: Layout) -> list[tuple[Point, Point, _Edge, int]]:
    """Edges merged where they continue each other and nothing branches off between them.

    With each the distance along it at which its textures begin, which is that of its panel if it has one.
    """
    edges: dict[_Edge, list[tuple[int, int]]] = defaultdict(list)  # edge -> (line of the grid, place on it)
    degree: dict[Point, int] = defaultdict(int)
    for edge, along, place in _edges(layout):
        edges[edge].append((along, place))
        for end in (place, place + 1):
            degree[(along, end) if edge.vertical else (end, along)] += 1
    lines = []
    for edge, places in edges.items():
        runs: list[list[int]] = []
        for along, place in sorted(places):
            joint = (along, place) if edge.vertical else (place, along)
            if runs and runs[-1][0] == along and runs[-1][2] == place and degree[joint] == 2:
                runs[-1][2] = place + 1
            else:
                runs.append([along, place, place + 1])
        low, high = min(place for _, place in places), max(place + 1 for _, place in places)
        origin = 0 if edge.panel is None else low * TILE if edge.forward else -high * TILE
        for along, low, high in runs:
            ends = [(along, low), (along, high)] if edge.vertical else [(low, along), (high, along)]
            (x, y), (x2, y2) = ends if edge.forward else ends[::-1]
            lines.append(((x * TILE, y * TILE), (x2 * TILE, y2 * TILE), edge, origin))
    return lines


def _edges(layout: Layout) -> Iterable[tuple[_Edge, int, int]]:
    """Every edge of a tile behind which something else lies, once."""
    rows, columns = layout.tiles.shape
    for row in range(rows):
        for column in range(columns):
            front = int(layout.tiles[row, column])
            for side in range(4) if front >= 0 else ():
                down, right = SIDES[side]
                beyond = row + down, column + right
                back = int(layout.tiles[beyond])
                if back == front or (back >= 0 and side > 1):  # the other tile tells of it
                    continue
                panel = layout.panels.get((row, column, side)) if back < 0 else None
                wall = layout.blocks.get(beyond, layout.areas[front].wall)
                edge = _Edge(front, back, wall, panel, side in (0, 2), forward=side in (1, 2))
                along = column + (side == 0) if edge.vertical else row + (side == 1)
                yield edge, along, row if edge.vertical else column


def _side(layout: Layout, edge: _Edge, start: Point, origin: int = 0, back: bool = False) -> dict[str, Value]:
    """A sidedef; `start` is where it begins, seen from its own side, `origin` where its textures do."""
    forward = edge.forward != back
    distance = start[1 if edge.vertical else 0] * (1 if forward else -1)
    side: dict[str, Value] = {
        "sector": edge.back if back else edge.front,
        "offsetx": (distance - origin) % PERIOD,
    }
    if edge.back < 0:
        return side | {"texturemiddle": edge.panel.texture if edge.panel else edge.wall}
    own, other = (layout.areas[i] for i in ((edge.back, edge.front) if back else (edge.front, edge.back)))
    if other.floor > own.floor:
        side["texturebottom"] = own.trim
    if other.ceiling < own.ceiling and not own.ceiling_flat == other.ceiling_flat == SKY_FLAT:
        side["texturetop"] = own.wall
    return side


def _block(kind: str, fields: dict[str, Value]) -> str:
    def text(value: Value) -> str:
        if isinstance(value, str):
            return f'"{value}"'
        return str(value).lower()

    return kind + "{" + "".join(f"{key}={text(value)};" for key, value in fields.items()) + "}\n"
