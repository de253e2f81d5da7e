"""Panels, text and small signs: all that is drawn over the picture. One of the few files with pygame."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pygame

Color = tuple[int, int, int]
Part = tuple[str, Color]
Group = tuple[float, Sequence[Part]]
"""Size of the text, and its parts."""

BACK: Color = (11, 12, 16)
TEXT: Color = (232, 234, 240)
MUTED: Color = (150, 156, 170)
ACCENT: Color = (255, 196, 92)
GOOD: Color = (126, 211, 150)
BAD: Color = (242, 120, 110)
PANEL = (14, 16, 22, 205)
LINE = (255, 255, 255, 28)
FINER = 4
"""Text is drawn so many times larger than it is shown."""


class Painter:
    """Text and panels at the scale of the window; rendered text is kept, as most of it repeats."""

    CACHE = 512

    def __init__(self) -> None:
        pygame.font.init()
        self._fonts: dict[int, pygame.font.Font] = {}
        self._texts: dict[tuple[str, int, Color], pygame.Surface] = {}
        self.unit = 1.0
        """Size of everything: 1 at a window of 1280 x 800."""

    def fit(self, width: int, height: int) -> None:
        unit = min(max(min(width / 1280, height / 800), 0.8), 3.0)
        if unit != self.unit:
            self.unit = unit
            self._texts.clear()

    def px(self, size: float) -> int:
        """A length in pixels, at least one."""
        return max(1, round(size * self.unit))

    def shift(self, size: float) -> int:
        """A distance to either side, in pixels."""
        return round(size * self.unit)

    def text(self, text: str, size: float = 16, color: Color = TEXT) -> pygame.Surface:
        """A rendered line."""
        key = (text, self.px(size), color)
        if key not in self._texts:
            if len(self._texts) >= self.CACHE:
                self._texts.clear()
            self._texts[key] = self._render(*key)
        return self._texts[key]

    def _render(self, text: str, size: int, color: Color) -> pygame.Surface:
        """Drawn large and made small: at small sizes the font snaps letters to whole pixels, which spaces
        them unevenly.
        """
        large = self._font(size).render(text, True, color)
        width, height = large.get_size()
        if width == 0:  # no text: nothing that could be scaled
            return large
        return pygame.transform.smoothscale(large, (max(width // FINER, 1), max(height // FINER, 1)))

    def _font(self, size: int) -> pygame.font.Font:
        if size not in self._fonts:
            self._fonts[size] = pygame.font.Font(None, FINER * size)
        return self._fonts[size]

    def panel(self, width: int, height: int, radius: float = 10) -> pygame.Surface:
        """An empty translucent panel."""
        surface = pygame.Surface((width, height), pygame.SRCALPHA)
        rect = surface.get_rect()
        pygame.draw.rect(surface, PANEL, rect, border_radius=self.px(radius))
        pygame.draw.rect(surface, LINE, rect, 1, border_radius=self.px(radius))
        return surface

    def rows(self, groups: Sequence[Group], room: int, pad: float = 12) -> pygame.Surface:
        """A panel with groups of text under each other. The parts of a group stand beside each other, on as
        many lines as a panel of `room` pixels needs.
        """
        side = self.px(pad)
        lines: list[tuple[int, list[pygame.Surface]]] = []
        for size, parts in groups:
            gap, texts = self.px(size * 0.75), [self.text(text, size, color) for text, color in parts]
            lines += [(gap, line) for line in _broken(texts, gap, room - 2 * side)]
        width = max(_width(texts, gap) for gap, texts in lines) + 2 * side
        between = self.px(5)
        heights = [max(t.get_height() for t in texts) for _, texts in lines]
        surface = self.panel(width, sum(heights) + between * (len(lines) - 1) + side)
        y = side // 2 + self.px(1)
        for (gap, texts), height in zip(lines, heights, strict=True):
            x = side
            for text in texts:
                surface.blit(text, (x, y + (height - text.get_height()) // 2))
                x += text.get_width() + gap
            y += height + between
        return surface

    def wrapped(self, text: str, size: float, room: int) -> list[str]:
        """The text in lines of at most `room` pixels; a word that is longer than that is broken."""
        lines, line = [], ""
        for word in text.split():
            longer = f"{line} {word}" if line else word
            if line and self._width(longer, size) > room:
                lines.append(line)
                longer = word
            while self._width(longer, size) > room and len(longer) > 1:
                fits = next(n for n in range(len(longer) - 1, 0, -1) if self._fits(longer[:n], size, room))
                lines.append(longer[:fits])
                longer = longer[fits:]
            line = longer
        return [*lines, line]

    def _fits(self, text: str, size: float, room: int) -> bool:
        return len(text) == 1 or self._width(text, size) <= room

    def _width(self, text: str, size: float) -> int:
        """Pixels of a text, which need not be drawn for it."""
        return self._font(self.px(size)).size(text)[0] // FINER

    def table(self, title: str, columns: Sequence[Sequence[tuple[str, str]]]) -> pygame.Surface:
        """A panel of columns of (key, meaning) under a title."""
        line, pad, gap = self.px(27), self.px(28), self.px(18)
        keys = [[self.text(k, 19, ACCENT) for k, _ in column] for column in columns]
        meanings = [[self.text(m, 19) for _, m in column] for column in columns]
        widths = [
            (max(k.get_width() for k in ks), max(m.get_width() for m in ms))
            for ks, ms in zip(keys, meanings, strict=True)
        ]
        head = self.text(title, 27)
        top = pad + head.get_height() + self.px(18)
        width = sum(k + gap + m for k, m in widths) + 2 * pad + self.px(44) * (len(columns) - 1)
        height = top + line * max(len(c) for c in columns) + pad - self.px(8)
        surface, x = self.panel(width, height, 14), pad
        surface.blit(head, (pad, pad))
        for ks, ms, (key_width, meaning_width) in zip(keys, meanings, widths, strict=True):
            for i, (key, meaning) in enumerate(zip(ks, ms, strict=True)):
                surface.blit(key, (x + key_width - key.get_width(), top + i * line))
                surface.blit(meaning, (x + key_width + gap, top + i * line))
            x += key_width + gap + meaning_width + self.px(44)
        return surface


def _width(texts: Sequence[pygame.Surface], gap: int) -> int:
    return sum(t.get_width() for t in texts) + gap * (len(texts) - 1)


def _broken(texts: Sequence[pygame.Surface], gap: int, room: int) -> list[list[pygame.Surface]]:
    """Lines of texts that are no wider than `room`, as far as each text alone allows that."""
    lines: list[list[pygame.Surface]] = []
    for text in texts:
        if lines and _width([*lines[-1], text], gap) <= room:
            lines[-1].append(text)
        else:
            lines.append([text])
    return lines


def picture_or_blank(path: Path | None, size: tuple[int, int]) -> pygame.Surface:
    """A PNG scaled to `size`; a plain card where there is none or it cannot be read."""
    if path is not None:
        try:
            return pygame.transform.smoothscale(pygame.image.load(str(path)).convert(), size)
        except (pygame.error, OSError):
            path = None  # a card without a picture can still be chosen
    blank = pygame.Surface(size)
    blank.fill((34, 37, 48))
    return blank


def letterbox(inner: tuple[int, int], outer: tuple[int, int], integer: bool) -> pygame.Rect:
    """The largest place for a picture of size `inner` in `outer` with its aspect kept."""
    scale = min(outer[0] / inner[0], outer[1] / inner[1])
    if integer and scale >= 1:
        scale = int(scale)
    width, height = max(1, round(inner[0] * scale)), max(1, round(inner[1] * scale))
    return pygame.Rect((outer[0] - width) // 2, (outer[1] - height) // 2, width, height)
