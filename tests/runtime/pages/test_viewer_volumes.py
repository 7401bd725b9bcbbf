"""What the viewer is given: the scan at its place in the patient, small enough, and as near to it as may be."""

from __future__ import annotations

import gzip
from itertools import permutations, product

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray

from covidseg_runtime.errors import VolumeError
from covidseg_runtime.pages.viewer_volumes import (
    HIGHEST_HU,
    LARGEST_SCAN_BYTES,
    LOWEST_HU,
    MOST_VOXELS,
    ViewerVolumes,
    make_viewer_volumes,
)
from covidseg_runtime.volume import Volume, to_orientation

# Turned by 10 and 20 degrees, unequal spacing, away from the origin.
_A, _B = np.deg2rad(10), np.deg2rad(20)
_TURN = np.array([[np.cos(_A), -np.sin(_A), 0], [np.sin(_A), np.cos(_A), 0], [0, 0, 1]]) @ np.array(
    [[1, 0, 0], [0, np.cos(_B), -np.sin(_B)], [0, np.sin(_B), np.cos(_B)]]
)
_STRAIGHT = np.eye(3)
SPACING_MM = (0.7, 0.9, 2.5)
# One axis longer than the viewer takes, by no whole number.
SHAPE = (300, 7, 205)
ORIENTATIONS = ["".join(signs) for axes in permutations(("RL", "AP", "SI")) for signs in product(*axes)]


def _affine(turn: NDArray[np.float64]) -> NDArray[np.float64]:
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag(SPACING_MM)
    affine[:3, 3] = (-130.0, 40.0, -700.5)
    return affine


def _volume(voxels: NDArray[np.generic], turn: NDArray[np.float64] = _STRAIGHT) -> Volume:
    return Volume(voxels, _affine(turn))


def _made(volume: Volume, labels: NDArray[np.uint8] | None = None) -> ViewerVolumes:
    return make_viewer_volumes(volume, np.zeros(volume.shape, np.uint8) if labels is None else labels)


def _read(content: bytes) -> nibabel.Nifti1Image:
    return nibabel.Nifti1Image.from_bytes(gzip.decompress(content))


def _outer_corners(shape: tuple[int, ...], affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """(8, 3): corners of the outermost voxels, in mm, sorted."""
    corners = np.array([[*(np.array(shape) * corner - 0.5), 1.0] for corner in np.ndindex(2, 2, 2)])
    placed = np.round((corners @ affine.T)[:, :3], 3) + 0.0
    return placed[np.lexsort(placed.T)]


# Its place


def test_there_are_48_orientations() -> None:
    assert len(ORIENTATIONS) == 48


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_the_reduced_grid_has_the_corners_of_the_scan_in_every_orientation(orientation: str) -> None:
    volume = to_orientation(_volume(np.zeros((262, 3, 2), np.int16)), orientation)
    read = _read(_made(volume).scan)
    assert read.shape == (256, 3, 2)
    assert nibabel.aff2axcodes(read.affine) == ("R", "A", "S")
    np.testing.assert_allclose(
        _outer_corners(read.shape, read.affine), _outer_corners(volume.shape, volume.affine), atol=0.002
    )


def test_the_reduced_grid_has_the_corners_of_an_oblique_scan() -> None:
    volume = _volume(np.zeros(SHAPE, np.int16), _TURN)
    made = _made(volume)
    read = _read(made.scan)
    assert made.shape == read.shape == (256, 7, 200)
    np.testing.assert_allclose(
        _outer_corners(read.shape, read.affine), _outer_corners(volume.shape, volume.affine), atol=0.002
    )
    # 300 voxels of 0.7 mm and 205 of 2.5 mm become 256 and 200.
    assert made.spacing_mm == pytest.approx((0.7 * 300 / 256, 0.9, 2.5 * 205 / 200), abs=1e-5)


def test_a_scan_that_fits_keeps_its_voxels_and_its_affine() -> None:
    hu = np.random.default_rng(0).integers(-1024, 256, (20, 12, 8)).astype(np.int16)
    volume = _volume(hu, _TURN)
    made = _made(volume)
    read = _read(made.scan)
    np.testing.assert_allclose(read.affine, volume.affine, atol=1e-4)
    assert made.step_hu == 10
    assert np.abs(read.get_fdata() - hu).max() <= 5


# Its values


def test_a_constant_scan_stays_constant() -> None:
    read = _read(_made(_volume(np.full(SHAPE, -704, np.int16))).scan)
    assert set(np.unique(read.get_fdata())) == {-704.0}


def test_the_mean_of_a_scan_is_kept_within_half_a_grey_level() -> None:
    # A ramp along each axis that was reduced, away from the ends of the range.
    ramp = np.linspace(-900, 100, SHAPE[0])[:, None, None] + np.linspace(-80, 80, SHAPE[2])[None, None, :]
    hu = np.broadcast_to(ramp, SHAPE).astype(np.float32)
    made = _made(_volume(hu))
    assert _read(made.scan).get_fdata().mean() == pytest.approx(hu.mean(), abs=0.05 * made.step_hu)


def test_each_voxel_is_the_mean_of_what_it_covers() -> None:
    # 512 voxels become 256, each of two: -1000 and 0 have the mean -500, which no grey level is away from by over 5.
    hu = np.zeros((512, 2, 2), np.int16)
    hu[::2] = -1000
    read = _read(_made(_volume(hu)).scan)
    assert read.shape == (256, 2, 2)
    assert np.abs(read.get_fdata() + 500).max() <= 5


def test_a_voxel_that_two_share_counts_for_each_by_its_share() -> None:
    # 384 voxels become 256, each of one and a half: the first holds voxel 0 and half of voxel 1.
    hu = np.full((384, 2, 2), -1000, np.int16)
    hu[1] = -400
    values = _read(_made(_volume(hu)).scan).get_fdata()[:, 0, 0]
    np.testing.assert_allclose(values[:3], [-800, -800, -1000], atol=5)


def test_grey_levels_are_within_half_a_step_of_the_hu_and_end_with_the_range() -> None:
    hu = np.linspace(-1200, 500, 40 * 30 * 20).reshape(40, 30, 20).astype(np.float32)
    made = _made(_volume(hu))
    shown = _read(made.scan).get_fdata()
    assert np.abs(shown - np.clip(hu, LOWEST_HU, HIGHEST_HU)).max() <= made.step_hu / 2 + 1e-3
    assert shown.min() == LOWEST_HU


def test_a_label_is_that_of_the_voxel_at_the_centre() -> None:
    # 512 to 256: centre i + 0.5 of the new grid is the border 2 i + 1 of the old one, so voxel 2 i + 1 is taken.
    labels = np.zeros((512, 2, 2), np.uint8)
    labels[1::4], labels[2::4] = 3, 2
    read = _read(_made(_volume(np.zeros(labels.shape, np.int16)), labels).labels)
    values = np.asarray(read.dataobj)[:, 0, 0]
    assert values[:4].tolist() == [3, 0, 3, 0]
    assert set(np.unique(values)) == {0, 3}


@pytest.mark.parametrize("orientation", ["LPS", "SPL", "PIR"])
def test_labels_lie_where_the_scan_shows_them(orientation: str) -> None:
    labels = np.zeros((20, 12, 8), np.uint8)
    labels[3:6, 4, 1], labels[15, 2, 7] = 3, 1
    hu = np.where(labels > 0, -300 + 100 * labels.astype(np.int16), -1000).astype(np.int16)
    volume = to_orientation(_volume(hu), orientation)
    turned = to_orientation(_volume(labels), orientation).voxels
    made = _made(volume, turned)
    scan, shown = _read(made.scan), _read(made.labels)
    np.testing.assert_array_equal(scan.affine, shown.affine)
    np.testing.assert_array_equal(np.asarray(shown.dataobj), labels)
    np.testing.assert_array_equal(scan.get_fdata() > -500, labels > 0)


def test_labels_of_another_shape_are_refused() -> None:
    with pytest.raises(VolumeError, match=r"labels have shape \(2, 2, 3\), the scan \(2, 2, 2\)"):
        make_viewer_volumes(_volume(np.zeros((2, 2, 2), np.int16)), np.zeros((2, 2, 3), np.uint8))


# Its files


def test_both_files_are_uint8_and_say_what_they_hold() -> None:
    labels = np.zeros((20, 12, 8), np.uint8)
    labels[1, 1, 1] = 3
    made = _made(_volume(np.zeros(labels.shape, np.int16)), labels)
    scan, shown = _read(made.scan).header, _read(made.labels).header
    assert scan.get_data_dtype() == shown.get_data_dtype() == np.uint8
    assert scan.get_xyzt_units()[0] == shown.get_xyzt_units()[0] == "mm"
    assert shown.get_intent()[0] == "label"
    assert (int(scan["sform_code"]), int(scan["qform_code"])) == (1, 1)


def test_the_same_scan_gives_the_same_bytes() -> None:
    hu = np.random.default_rng(1).integers(-1024, 256, (30, 20, 10)).astype(np.int16)
    labels = (hu > 200).astype(np.uint8)
    first, second = _made(_volume(hu), labels), _made(_volume(hu.copy()), labels.copy())
    assert (first.scan, first.labels) == (second.scan, second.labels)
    assert first.scan[4:8] == b"\0\0\0\0"  # no time


def test_even_noise_fits_into_its_bytes() -> None:
    shape = (300, 300, 220)
    noise = np.random.default_rng(2).integers(-1024, 256, shape).astype(np.int16)
    made = _made(_volume(noise))
    assert len(made.scan) <= LARGEST_SCAN_BYTES
    assert made.shape == tuple(n // 2 for n in MOST_VOXELS)
    read = _read(made.scan)
    np.testing.assert_allclose(
        _outer_corners(read.shape, read.affine), _outer_corners(shape, _affine(_STRAIGHT)), atol=0.002
    )
