"""Events in pictures and sound."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from world_model.evaluation.events import (
    box_psnr,
    flash_onsets,
    label_psnr,
    label_psnrs,
    log_mel_distance,
    log_mel_scores,
    onset_f1,
    picture_sound_offset,
    sound_onsets,
)

SAMPLES = 882


def bangs(ticks: int, at: list[int], seed: int = 0) -> NDArray[np.int16]:
    """Noise that begins suddenly in these ticks and dies away over some."""
    rng = np.random.default_rng(seed)
    level = np.full(ticks * SAMPLES, 0.01)
    for tick in at:
        tail = np.exp(-np.arange(6 * SAMPLES) / (1.5 * SAMPLES)) * 0.5
        start = tick * SAMPLES + 100
        level[start : start + len(tail)] += tail[: len(level) - start]
    wave = level * rng.uniform(-1, 1, len(level)) * 32767
    return np.repeat(wave.clip(-32767, 32767).astype(np.int16).reshape(ticks, SAMPLES, 1), 2, -1)


def events(ticks: int, at: list[int]) -> NDArray[np.bool_]:
    found = np.zeros(ticks, bool)
    found[at] = True
    return found


def test_bangs_are_found_once_and_hiss_is_not() -> None:
    assert np.flatnonzero(sound_onsets(bangs(60, [10, 25, 50]))).tolist() == [10, 25, 50]
    assert not sound_onsets(bangs(60, [])).any()


def test_a_bang_in_the_first_tick_is_found() -> None:
    assert sound_onsets(bangs(10, [0]))[0]


def test_flashes_are_found_in_their_box_alone() -> None:
    pictures = np.full((20, 16, 32, 3), 40, np.uint8)
    pictures[8:10, 4:8, 10:14] = 250
    assert np.flatnonzero(flash_onsets(pictures, (10, 4, 4, 4))).tolist() == [8]
    assert not flash_onsets(pictures, (20, 4, 4, 4)).any()


@pytest.mark.parametrize(
    ("found", "expected"),
    [([10, 20], 1.0), ([11, 19], 1.0), ([12, 20], 0.5), ([10], 2 / 3), ([], 0.0), ([9, 10, 11, 20], 2 / 3)],
)
def test_f1_matches_one_to_one_within_a_tick(found: list[int], expected: float) -> None:
    assert onset_f1(events(30, found), events(30, [10, 20])) == pytest.approx(expected)


def test_f1_without_any_event_is_none() -> None:
    assert onset_f1(events(5, []), events(5, [])) is None


@pytest.mark.parametrize("offset", [-5, -1, 0, 3])
def test_offset_tells_which_comes_later(offset: int) -> None:
    seen = [20, 37, 61, 75, 90]
    found = picture_sound_offset(events(120, seen), events(120, [t + offset for t in seen]))
    assert found is not None and (found.ticks, found.pairs) == (offset, 5)
    assert found.correlation > 0.9


@pytest.mark.parametrize("count", [0, 1, 2, 5, 10, 40])
def test_unrelated_events_have_no_offset(count: int) -> None:
    rng = np.random.default_rng(count)
    for _ in range(50):
        seen, heard = (events(1200, rng.choice(1200, count, replace=False).tolist()) for _ in range(2))
        assert picture_sound_offset(seen, heard) is None


def test_offset_needs_rows_of_one_length() -> None:
    with pytest.raises(ValueError, match="one length"):
        picture_sound_offset(events(50, [3]), events(51, [3]))


def test_log_mel_tells_the_same_events_from_silence_and_shuffled_ticks() -> None:
    true, other = bangs(80, [10, 30, 55], seed=0), bangs(80, [10, 30, 55], seed=1)
    scores = log_mel_scores(other, true)
    assert scores["dream"] < 0.6 * scores["shuffled"] and scores["dream"] < 0.6 * scores["silence"]
    assert log_mel_distance(true, true) == 0
    with pytest.raises(ValueError, match="cut them alike"):
        log_mel_distance(true, true[:10])


def test_psnr_over_boxes_sees_only_the_boxes() -> None:
    a = np.zeros((20, 30, 3), np.uint8)
    b = a.copy()
    b[2:6, 3:9] = 51  # a fifth of the peak: 14 dB
    assert box_psnr(a, b, [(3, 2, 6, 4)]) == pytest.approx(20 * math.log10(5))
    assert box_psnr(a, b, [(3, 2, 6, 4), (3, 2, 6, 4)]) == pytest.approx(20 * math.log10(5))
    assert box_psnr(a, b, [(12, 2, 6, 4)]) == 100.0
    assert box_psnr(a, b, [(-4, -4, 3, 3)]) != box_psnr(a, b, [(-4, -4, 3, 3)]), "no pixel: NaN"


def test_label_psnr_counts_the_kinds_asked_for() -> None:
    a = np.zeros((2, 20, 30, 3), np.uint8)
    b = a.copy()
    b[1, 2:6, 3:9] = 51
    labels = np.zeros((2, 2, 5), np.int16)
    labels[1] = [[1, 3, 2, 6, 4], [2, 20, 10, 5, 5]]
    assert label_psnr(a, b, labels, frozenset({1})) == pytest.approx(20 * math.log10(5))
    assert label_psnr(a, b, labels, frozenset({2})) == 100.0
    assert math.isnan(label_psnr(a, b, labels, frozenset({3})))


def test_label_psnr_comes_with_the_whole_of_the_pictures_that_have_a_box() -> None:
    a = np.zeros((2, 20, 30, 3), np.uint8)
    b = a.copy()
    b[0] = 200  # has no box, so it counts for nothing
    b[1, 2:6, 3:9] = 51
    labels = np.zeros((2, 1, 5), np.int16)
    labels[1] = [[1, 3, 2, 6, 4]]
    own, whole = label_psnrs(a, b, labels)
    assert whole == pytest.approx(own + 10 * math.log10(20 * 30 / 24))
