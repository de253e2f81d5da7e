"""What lies over the picture: figures, badges, the memory strip, notices and the help. Uses pygame."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pygame

from game import labels
from game.budget import Level
from game.keys import Bindings
from game.loop import HudState
from game.paint import ACCENT, BACK, GOOD, MUTED, TEXT, Painter, picture_or_blank
from game.picker import Card
from world_model.types import FPS, Action

THUMB = (64, 40)
NOTE_WIDTH = 900
"""Widest notice, at a window of 1280 x 800."""


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
        taken = pygame.Rect(0, 0, 0, 0)
        if figures and state.level < Level.NO_HUD:
            taken = screen.blit(self._figures(state, width - 2 * edge, height // 3), (edge, edge))
        badges = labels.badges(state)
        if badges:
            room = width - 2 * edge
            badge = self._cached("badge", (badges, room), lambda: p.rows([(20, badges)], room))
            spot = badge.get_rect(topright=(width - edge, edge))
            if spot.left < taken.right + edge:  # no room beside the figures
                spot.top = max(edge, taken.bottom + edge // 2)
            screen.blit(badge, spot)
        bottom = height - edge
        if memory and state.level < Level.NO_HUD:
            strip = self._memory(state, width - 2 * edge)
            if strip is not None:
                bottom -= strip.get_height()
                screen.blit(strip, ((width - strip.get_width()) // 2, bottom))
                bottom -= edge
        if state.message:
            room = min(width - 2 * edge, p.px(NOTE_WIDTH))
            note = self._cached("note", (state.message, room), lambda: self._note(state.message, room))
            screen.blit(note, ((width - note.get_width()) // 2, bottom - note.get_height()))

    def help(self, screen: pygame.Surface, actions: tuple[Action, ...], bindings: Bindings) -> None:
        """The help over everything."""
        columns = labels.help_columns(actions, bindings)
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

    def _note(self, message: str, room: int) -> pygame.Surface:
        pad = 16
        lines = self._paint.wrapped(message, 22, room - 2 * self._paint.px(pad))
        return self._paint.rows([(22, [(line, TEXT)]) for line in lines], room, pad)

    def _figures(self, state: HudState, room: int, most: int) -> pygame.Surface:
        """A panel at most `room` wide. Where it would be higher than `most`, the last ones are left out."""
        groups = labels.figures(state)

        def make() -> pygame.Surface:
            for count in range(len(groups), 1, -1):
                panel = self._paint.rows(groups[:count], room)
                if panel.get_height() <= most:
                    return panel
            return self._paint.rows(groups[:1], room)

        return self._cached("figures", (groups, room, most), make)

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
                age = p.text(labels.age(keyframe.age), 16, ACCENT if i in state.attended else MUTED)
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


def _thumbnail(pixels: np.ndarray, size: tuple[int, int]) -> pygame.Surface:
    height, width = pixels.shape[:2]
    small = pygame.image.frombuffer(np.ascontiguousarray(pixels).tobytes(), (width, height), "RGB")
    return pygame.transform.scale(small, size)


def _shade(size: tuple[int, int]) -> pygame.Surface:
    surface = pygame.Surface(size, pygame.SRCALPHA)
    surface.fill((0, 0, 0, 120))
    return surface
