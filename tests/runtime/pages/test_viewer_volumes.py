"""What the viewer shows is where it was in the patient, however much it was reduced."""

from __future__ import annotations

import gzip

import nibabel
import numpy as np
import pytest
from phantom import PHANTOM_SPACING_MM, phantom_hu, phantom_labels, spl_affine

from covidseg_runtime.errors import VolumeError
from covidseg_runtime.pages import viewer_volumes
from covidseg_runtime.pages.viewer_volumes import make_viewer_volumes
from covidseg_runtime.volume import Volume, to_orientation


def _read(packed: bytes) -> nibabel.Nifti1Image:
    return nibabel.Nifti1Image.from_bytes(gzip.decompress(packed))


def _phantom() -> Volume:
    return Volume(phantom_hu(), spl_affine(PHANTOM_SPACING_MM))


def _corners(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The outer corners of a grid in mm, sorted: half a voxel beyond the centres."""
    ends = [(-0.5, n - 0.5) for n in shape]
    points = [affine @ (x, y, z, 1) for x in ends[0] for y in ends[1] for z in ends[2]]
    return np.array(sorted(np.round(points, 6).tolist()))


def test_a_small_scan_keeps_every_voxel_and_its_place() -> None:
    scan = _phantom()
    volumes = make_viewer_volumes(scan, phantom_labels())
    turned = to_orientation(scan, "RAS")
    shown, labels = _read(volumes.scan), _read(volumes.labels)
    assert volumes.shape == shown.shape == labels.shape == turned.shape
    for image in (shown, labels):
        np.testing.assert_allclose(image.affine, turned.affine, atol=1e-4)
        assert nibabel.aff2axcodes(image.affine) == ("R", "A", "S")
        assert (image.header["sform_code"], image.header["qform_code"]) == (1, 1)
    assert np.abs(shown.get_fdata() - turned.voxels).max() <= volumes.step_hu / 2
    turned_labels = to_orientation(Volume(phantom_labels(), scan.affine), "RAS").voxels
    np.testing.assert_array_equal(np.asarray(labels.dataobj), turned_labels)


def test_a_reduced_scan_covers_what_the_scan_covers(monkeypatch: pytest.MonkeyPatch) -> None:
    scan = _phantom()
    turned = to_orientation(scan, "RAS")
    monkeypatch.setattr(viewer_volumes, "MOST_VOXELS", (22, 20, 9))  # of 44, 36 and 28
    volumes = make_viewer_volumes(scan, phantom_labels())
    shown = _read(volumes.scan)
    assert shown.shape == (22, 20, 9)
    np.testing.assert_allclose(_corners(shown.affine, shown.shape), _corners(turned.affine, turned.shape), atol=1e-3)
    assert volumes.spacing_mm == pytest.approx((3.0, 1.5 * 36 / 20, 2.0 * 28 / 9))


def test_a_new_voxel_is_the_mean_of_what_it_covers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(viewer_volumes, "MOST_VOXELS", (2, 1, 1))
    # RAS along x: -1000, -600 | 0 and, shared half by half, -200: (-1000 - 600 / 2) / 1.5 and (-600 / 2 - 200) / 1.5.
    voxels = np.array([-1000, -600, -200], np.float32).reshape(3, 1, 1)
    volumes = make_viewer_volumes(Volume(voxels, np.diag((2.0, 1.0, 1.0, 1.0))), np.zeros(voxels.shape, np.uint8))
    shown = _read(volumes.scan)
    np.testing.assert_allclose(shown.get_fdata().ravel(), [-1300 / 1.5, -500 / 1.5], atol=volumes.step_hu / 2)
    np.testing.assert_allclose(shown.affine @ (0, 0, 0, 1), (0.5, 0, 0, 1))  # centre of 0 to 3 voxels' first half
    assert volumes.spacing_mm == (3.0, 1.0, 1.0)


def test_a_label_is_that_of_the_voxel_at_the_centre(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(viewer_volumes, "MOST_VOXELS", (2, 1, 1))
    labels = np.array([1, 3, 2, 2, 3, 1], np.uint8).reshape(6, 1, 1)
    scan = Volume(np.full(labels.shape, -800, np.int16), np.eye(4))
    assert np.asarray(_read(make_viewer_volumes(scan, labels).labels).dataobj).ravel().tolist() == [3, 3]


def test_hu_beyond_the_window_are_shown_as_its_ends() -> None:
    voxels = np.array([-3024, -1024, 256, 3071], np.int16).reshape(4, 1, 1)
    volumes = make_viewer_volumes(Volume(voxels, np.eye(4)), np.zeros(voxels.shape, np.uint8))
    assert _read(volumes.scan).get_fdata().ravel().tolist() == pytest.approx([-1024, -1024, 256, 256], abs=5)


def test_noise_gets_coarser_grey_levels_then_fewer_voxels(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    scan = Volume(rng.integers(-1000, 200, (32, 32, 32), dtype=np.int16), np.eye(4))
    labels = np.zeros(scan.shape, np.uint8)
    monkeypatch.setattr(viewer_volumes, "MOST_VOXELS", (32, 32, 32))
    sizes = []
    for largest in (40_000, 26_000, 4_500):
        monkeypatch.setattr(viewer_volumes, "LARGEST_SCAN_BYTES", largest)
        volumes = make_viewer_volumes(scan, labels)
        assert len(volumes.scan) <= largest
        sizes.append((volumes.shape[0], volumes.step_hu))
    assert sizes[0] == (32, 10.0)
    assert sizes[1][0] == 32
    assert sizes[1][1] > 10.0
    assert sizes[2][0] == 16
    assert _read(volumes.labels).shape == (16, 16, 16)


def test_labels_of_another_shape_are_refused() -> None:
    with pytest.raises(VolumeError, match="labels have shape"):
        make_viewer_volumes(_phantom(), phantom_labels()[1:])
