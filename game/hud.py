"""What lies over the picture: figures, badges, the memory strip, notices and the help. Uses pygame."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pygame

from game.budget import Level
from game.keys import Bindings, Command
from game.loop import HudState
from game.paint import ACCENT, BACK, BAD, GOOD, MUTED, TEXT, Color, Painter, picture_or_blank
from game.picker import Card
from world_model.types import FPS, Action

MEANINGS: dict[Command, str] = {
    Command.RESTART: "start anew, next seed",
    Command.PAUSE: "pause",
    Command.ADVANCE: "one tick further",
    Command.REWIND: "rewind, while held",
    Command.FAST_FORWARD: "fast forward, while held",
    Command.SLOWER: "slower",
    Command.FASTER: "faster",
    Command.SAVE: "save in the slot",
    Command.LOAD: "load the slot",
    Command.SLOT: "choose a slot",
    Command.PLAYER: "who plays",
    Command.VIDEO: "film",
    Command.CLIP: "keep the last 30 s",
    Command.SCREENSHOT: "screenshot",
    Command.MUTE: "mute",
    Command.LOUDER: "louder",
    Command.QUIETER: "quieter",
    Command.MEMORY: "show the memory",
    Command.HUD: "show figures",
    Command.SCALING: "smooth or sharp pixels",
    Command.FULLSCREEN: "fullscreen",
    Command.PICKER: "choose a world",
    Command.TWIN: "the real game beside it",
    Command.RESEED: "twin: dream on from the real game",
    Command.HELP: "this help",
    Command.QUIT: "leave",
}
THUMB = (64, 40)
SHORT = {
    "up": "Up",
    "down": "Down",
    "left": "Left",
    "right": "Right",
    "escape": "Esc",
    "return": "Enter",
    "backspace": "Backspace",
    "pause": "Pause",
}
"""Names of keys as they stand on them."""


class Hud:
    """Draws over a surface of the window's size. Panels are made anew only when their content changes."""

    def __init__(self, painter: Painter) -> None:
        self._paint = painter
        self._made: dict[str, tuple[object, pygame.Surface]] = {}

    def draw(
        self, screen: pygame.Surface, place: pygame.Rect, state: HudState, figures: bool, memory: bool
    ) -> None:
        """`place` is where the picture lies. `figures` and `memory` are the person's choice; badges and
        notices show in any case.
        """
        p = self._paint
        width, height = screen.get_size()
        edge = p.px(14)
        for x, y, text in state.captions:
            caption = p.text(text, 20)
            at = (
                place.left + int(x * place.width) + edge,
                place.top + int((y + 0.5) * place.height) - p.px(30),
            )
            screen.blit(p.text(text, 20, BACK), (at[0] + 1, at[1] + 1))
            screen.blit(caption, at)
        if figures and state.level < Level.NO_HUD:
            screen.blit(self._figures(state), (edge, edge))
        badges = _badges(state)
        if badges:
            badge = self._cached("badge", badges, lambda: p.row(badges, 20))
            screen.blit(badge, (width - badge.get_width() - edge, edge))
        bottom = height - edge
        if memory and state.level < Level.NO_HUD:
            strip = self._memory(state, width - 2 * edge)
            if strip is not None:
                bottom -= strip.get_height()
                screen.blit(strip, ((width - strip.get_width()) // 2, bottom))
                bottom -= edge
        if state.message:
            note = self._cached("note", state.message, lambda: p.row([(state.message, TEXT)], 22, 16))
            screen.blit(note, ((width - note.get_width()) // 2, bottom - note.get_height()))

    def help(self, screen: pygame.Surface, actions: tuple[Action, ...], bindings: Bindings) -> None:
        """The help over everything."""
        columns = help_columns(actions, bindings)
        key = (columns, screen.get_size())
        panel = self._cached("help", key, lambda: self._paint.table("Keys", columns))
        shade = self._cached("shade", screen.get_size(), lambda: _shade(screen.get_size()))
        screen.blit(shade, (0, 0))
        screen.blit(panel, panel.get_rect(center=screen.get_rect().center))

    def _cached(self, name: str, key: object, make: object) -> pygame.Surface:
        key = (key, self._paint.unit)
        held = self._made.get(name)
        if held is None or held[0] != key:
            assert callable(make)
            held = (key, make())
            self._made[name] = held
        return held[1]

    def _figures(self, state: HudState) -> pygame.Surface:
        work = state.work or {"p50": 0.0, "p95": 0.0, "p99": 0.0}
        slow = work["p99"] > 1000 / FPS
        parts: list[tuple[str, Color]] = [
            (state.world, ACCENT),
            (f"{state.fps:.1f} fps", GOOD if state.fps > FPS - 1 else TEXT),
            (f"{work['p50']:.1f} ms", TEXT),
            (f"p95 {work['p95']:.1f}   p99 {work['p99']:.1f}", BAD if slow else MUTED),
            *([(state.status, TEXT)] if state.status else []),
            (f"missed {state.missed}", MUTED),
            (f"key to picture < {state.latency:.0f} ms", MUTED),
        ]
        return self._cached("figures", tuple(parts), lambda: self._paint.row(parts, 20))

    def _memory(self, state: HudState, room: int) -> pygame.Surface | None:
        """Thumbnails of the keyframes with their age; framed are those that this tick read."""
        p = self._paint
        if not state.keyframes and not state.window[1]:
            return None
        cell, gap, pad = (p.px(THUMB[0]), p.px(THUMB[1])), p.px(6), p.px(12)
        fit = max((room - 2 * pad + gap) // (cell[0] + gap), 1)
        shown = list(enumerate(state.keyframes))[:fit]
        bar = p.px(5)
        key = (tuple((id(k.thumbnail), k.age // FPS) for _, k in shown), state.attended, state.window, room)

        def make() -> pygame.Surface:
            columns = max(len(shown), 4)
            width = 2 * pad + columns * (cell[0] + gap) - gap
            panel = p.panel(width, pad + cell[1] + p.px(20) + bar + pad)
            for at, (i, keyframe) in enumerate(shown):
                spot = pygame.Rect(pad + at * (cell[0] + gap), pad, *cell)
                panel.blit(_thumbnail(keyframe.thumbnail, cell), spot)
                if i in state.attended:
                    pygame.draw.rect(panel, ACCENT, spot.inflate(4, 4), p.px(2), border_radius=3)
                age = p.text(_age(keyframe.age), 16, ACCENT if i in state.attended else MUTED)
                panel.blit(age, age.get_rect(midtop=(spot.centerx, spot.bottom + p.px(4))))
            self._window_bar(
                panel, state.window, pygame.Rect(pad, panel.get_height() - pad, width - 2 * pad, bar)
            )
            return panel

        return self._cached("memory", key, make)

    def _window_bar(self, panel: pygame.Surface, window: tuple[int, int], place: pygame.Rect) -> None:
        """One little bar for each place of the sliding window, lit where it is filled."""
        filled, size = window
        for i in range(size):
            left = place.left + i * place.width // size
            right = place.left + (i + 1) * place.width // size - self._paint.px(2)
            color = GOOD if i < filled else (60, 64, 74)
            pygame.draw.rect(panel, color, (left, place.top - place.height // 2, right - left, place.height))


class Cards:
    """A grid of cards to choose from, centred; remembers where they are for the mouse."""

    WIDTH, HEIGHT, GAP = 240, 150, 28

    def __init__(self, painter: Painter) -> None:
        self._paint = painter
        self._pictures: dict[tuple[Card, tuple[int, int]], pygame.Surface] = {}
        self._spots: list[pygame.Rect] = []

    def at(self, position: tuple[int, int]) -> int | None:
        """The card under a point."""
        return next((i for i, spot in enumerate(self._spots) if spot.collidepoint(position)), None)

    def draw(
        self, screen: pygame.Surface, title: str, cards: Sequence[Card], chosen: int, columns: int
    ) -> None:
        """Scrolls by rows where not all fit."""
        p = self._paint
        screen.fill(BACK)
        width, height, gap = p.px(self.WIDTH), p.px(self.HEIGHT), p.px(self.GAP)
        row_height = height + p.px(44)
        head = p.text(title, 40)
        screen.blit(head, head.get_rect(midtop=(screen.get_width() // 2, p.px(56))))
        hint = p.text("arrows and Enter, or the mouse     Esc leaves", 20, MUTED)
        screen.blit(hint, hint.get_rect(midbottom=(screen.get_width() // 2, screen.get_height() - p.px(28))))
        rows = -(-len(cards) // columns)
        room = max((screen.get_height() - p.px(190)) // row_height, 1)
        first = min(max(chosen // columns - room // 2, 0), max(rows - room, 0))
        shown = min(rows, room)
        left = (screen.get_width() - columns * width - (columns - 1) * gap) // 2
        top = p.px(30) + (screen.get_height() - shown * row_height) // 2
        self._spots = []
        for i, card in enumerate(cards):
            row = i // columns - first
            spot = pygame.Rect(left + i % columns * (width + gap), top + row * row_height, width, height)
            visible = 0 <= row < shown
            self._spots.append(spot if visible else pygame.Rect(0, 0, 0, 0))
            if visible:
                self._card(screen, card, spot, i == chosen)

    def _card(self, screen: pygame.Surface, card: Card, spot: pygame.Rect, chosen: bool) -> None:
        p = self._paint
        key = (card, spot.size)
        if key not in self._pictures:
            self._pictures[key] = picture_or_blank(card.picture, spot.size)
        screen.blit(self._pictures[key], spot)
        color = ACCENT if chosen else (60, 64, 78)
        pygame.draw.rect(screen, color, spot.inflate(p.px(6), p.px(6)), p.px(3), border_radius=p.px(6))
        name = p.text(card.name, 22, ACCENT if chosen else TEXT)
        screen.blit(name, (spot.left, spot.bottom + p.px(9)))
        if card.about:
            about = p.text(card.about, 18, MUTED)
            screen.blit(about, (spot.right - about.get_width(), spot.bottom + p.px(11)))


def help_columns(
    actions: tuple[Action, ...], bindings: Bindings
) -> tuple[tuple[tuple[str, str], ...], tuple[tuple[str, str], ...]]:
    """(key, meaning) of the world's actions and of the commands, in two columns of about equal length."""
    moves = []
    for action in actions:
        if len(action.default_keys) == 1:
            keys = [k for k, name in bindings.game.items() if name == action.default_keys[0]]
            moves.append(("  ".join(_key_name(k) for k in keys), action.name.replace("_", " ")))
    rows = moves + [(_key_names(bindings.keys_of(c)), meaning) for c, meaning in MEANINGS.items()]
    rows = [row for row in rows if row[0]]
    half = (len(rows) + 1) // 2
    return tuple(rows[:half]), tuple(rows[half:])


def _key_names(keys: tuple[str, ...]) -> str:
    if len(keys) > 4:
        return f"{keys[0]} .. {keys[-1]}"
    # The second Enter key needs no mention.
    return "  ".join(_key_name(k) for k in keys if k != "enter" or "return" not in keys)


def _key_name(key: str) -> str:
    return SHORT.get(key, key.upper() if len(key) < 4 else key.title())


def _badges(state: HudState) -> tuple[tuple[str, Color], ...]:
    badges: list[tuple[str, Color]] = []
    if state.filming:
        badges.append(("filming", BAD))
    if state.player != "you":
        badges.append((f"{state.player} plays", MUTED))
    if state.recall_left:
        badges.append((f"dreaming the way back: {state.recall_left} ticks", ACCENT))
    elif state.mode != "playing":
        badges.append((state.mode, ACCENT))
    if state.speed != 1:
        badges.append((f"{100 * state.speed:g} % speed", ACCENT))
    if state.level == Level.HALF_PICTURES:
        badges.append(("every second picture", MUTED))
    if state.slowed < 0.99:
        badges.append((f"slow motion {100 * state.slowed:.0f} %: this machine is busy", BAD))
    return tuple(badges)


def _age(ticks: int) -> str:
    seconds = ticks / FPS
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def _thumbnail(pixels: np.ndarray, size: tuple[int, int]) -> pygame.Surface:
    height, width = pixels.shape[:2]
    small = pygame.image.frombuffer(np.ascontiguousarray(pixels).tobytes(), (width, height), "RGB")
    return pygame.transform.scale(small, size)


def _shade(size: tuple[int, int]) -> pygame.Surface:
    surface = pygame.Surface(size, pygame.SRCALPHA)
    surface.fill((0, 0, 0, 120))
    return surface
