"""What is no CT of a chest is refused or warned of; the two real scans of the repository are neither."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from covidseg_runtime.errors import VolumeError
from covidseg_runtime.measures import measure
from covidseg_runtime.scan_checks import ScanSample, check_lungs, check_scan, correlation, outside_air_share
from covidseg_runtime.volume import Volume, to_orientation
from covidseg_runtime.volume_files import read_volume

DATA = Path(__file__).parents[1] / "data"
SPACING_MM = (2.5, 2.0, 2.0)


@pytest.fixture(scope="module")
def chest() -> Volume:
    """The demo scan, whole, (Z, Y, X)."""
    return to_orientation(read_volume(DATA / "demo" / "coronacases_002_ct.nii.gz"), "SPL")


def said_of(hu: np.ndarray, spacing_mm: tuple[float, float, float] = SPACING_MM) -> str:
    return " ".join(check_scan(hu, spacing_mm))


def water() -> np.ndarray:
    """A cylinder of 0 HU in air, 240 mm in diameter, (Z, Y, X)."""
    y, x = np.ogrid[:160, :160]
    hu = np.full((80, 160, 160), -1000, np.int16)
    hu[:, (y - 80) ** 2 + (x - 80) ** 2 < 60**2] = 0
    return hu


def test_real_scans_are_neither_refused_nor_warned_of(chest: Volume) -> None:
    crop = to_orientation(read_volume(DATA / "lidc_0001_crop_ct.nii.gz"), "SPL")
    assert check_scan(chest.voxels, chest.spacing_mm) == check_scan(crop.voxels, crop.spacing_mm) == ()


@pytest.mark.parametrize("lowest_hu", [-1250, -160])
def test_grey_levels_of_a_window_are_refused(chest: Volume, lowest_hu: int) -> None:
    grey = (np.clip((chest.voxels - lowest_hu) / (250 - lowest_hu), 0, 1) * 255).astype(np.uint8)
    with pytest.raises(VolumeError, match=r"to 25\d: nothing as light as lung or air"):
        check_scan(grey, chest.spacing_mm)


def test_grey_levels_beside_padding_are_warned_of(chest: Volume) -> None:
    grey = (np.clip((chest.voxels + 1250) / 1500, 0, 1) * 255).astype(np.int16)
    grey[:, :, :10] = -1024
    assert "Only 0% of what is denser than air is as light as lung" in said_of(grey, chest.spacing_mm)


@pytest.mark.parametrize("padding", [None, -1024, -2000])
def test_a_rescale_intercept_that_was_left_out_is_refused_by_name(chest: Volume, padding: int | None) -> None:
    stored = chest.voxels + 1024
    if padding is not None:
        stored[:, :, :10] = padding
    with pytest.raises(VolumeError, match="the rescale intercept .* was left out"):
        check_scan(stored, chest.spacing_mm)


@pytest.mark.parametrize("shift", [-1024, -300, 300])
def test_values_that_are_shifted_otherwise_are_warned_of(chest: Volume, shift: int) -> None:
    assert "no Hounsfield units" in said_of(chest.voxels + shift, chest.spacing_mm)


def test_values_clipped_to_a_window_of_soft_tissue_are_warned_of(chest: Volume) -> None:
    assert "no Hounsfield units" in said_of(np.clip(chest.voxels, -250, 250), chest.spacing_mm)


@pytest.mark.parametrize(
    ("value", "said"), [(0, "nothing as light"), (-1000, "nothing but air"), (np.nan, "not finite"), (np.inf, "finite")]
)
def test_a_constant_is_refused(value: float, said: str) -> None:
    with pytest.raises(VolumeError, match=said):
        check_scan(np.full((20, 20, 20), value, np.float32), SPACING_MM)


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 1, 2), (1, 5, 5)])
def test_a_scan_of_a_few_voxels_is_judged_too(shape: tuple[int, int, int]) -> None:
    with pytest.raises(VolumeError, match="nothing but air"):
        check_scan(np.full(shape, -900, np.int16), SPACING_MM)


def test_noise_is_refused() -> None:
    generator = np.random.default_rng(0)
    for noise in (generator.uniform(-1000, 400, (40, 60, 60)), generator.normal(-500, 300, (40, 60, 60))):
        with pytest.raises(VolumeError, match=r"Neighbouring voxels are hardly alike \(correlation -?0\.0"):
            check_scan(noise.astype(np.int16), SPACING_MM)


def test_water_is_warned_of() -> None:
    assert "Only 0% of what is denser than air is as light as lung" in said_of(water())


def test_the_noise_is_measured_in_hu() -> None:
    noise = np.random.default_rng(0).normal(0.0, 40.0, (80, 160, 160))
    assert ScanSample.of(water() + noise, SPACING_MM).noise_hu == pytest.approx(40.0, rel=0.03)


@pytest.mark.parametrize(("sd_hu", "warned"), [(50, False), (130, True)])
def test_noise_far_beyond_that_of_real_scans_is_warned_of(chest: Volume, sd_hu: float, warned: bool) -> None:
    noise = np.random.default_rng(0).normal(0.0, sd_hu, chest.voxels.shape)
    assert ("standard deviation" in said_of(chest.voxels + noise, chest.spacing_mm)) == warned


def test_slices_in_a_wrong_order_are_warned_of(chest: Volume) -> None:
    odd_after_even = np.concatenate((chest.voxels[::2], chest.voxels[1::2]))
    said = said_of(odd_after_even, chest.spacing_mm)
    assert "Of 199 pairs of neighbouring slices 1 are hardly alike" in said
    assert "slices 100 and 101 from the feet" in said
    assert "hardly alike" in said_of(np.random.default_rng(0).permutation(chest.voxels), chest.spacing_mm)


def test_slices_far_apart_may_differ(chest: Volume) -> None:
    z, y, x = chest.spacing_mm
    assert "alike" not in said_of(chest.voxels[::7], (7 * z, y, x))  # 10.5 mm
    assert "alike" not in said_of(chest.voxels[::6], (6 * z, y, x))  # 9 mm


def test_correlation_is_that_of_numpy_and_none_for_a_constant() -> None:
    first, second = np.random.default_rng(0).uniform(-900, 100, (2, 7, 9)).astype(np.float32)
    assert correlation(first, second) == pytest.approx(np.corrcoef(first.ravel(), second.ravel())[0, 1], abs=1e-5)
    assert np.isnan(correlation(first, np.full_like(first, 40)))
    assert np.isnan(correlation(first[:0], second[:0]))


def lungs(shape: tuple[int, int, int], left: tuple[slice, ...], right: tuple[slice, ...]) -> np.ndarray:
    labels = np.zeros(shape, np.uint8)
    labels[left], labels[right] = 1, 2
    return labels


def said_of_lungs(labels: np.ndarray, spacing_mm: tuple[float, float, float], lung_hu: int = -850) -> list[str]:
    hu = np.where(labels > 0, lung_hu, 40).astype(np.int16)
    return list(check_lungs(labels, hu, spacing_mm, measure(labels, hu, spacing_mm)))


# Two blocks of 40×30×20 voxels of 5 mm: 3 L each.
LEFT, RIGHT = np.s_[5:45, 5:35, 30:50], np.s_[5:45, 5:35, 5:25]
SHAPE = (50, 40, 55)


def test_whole_lungs_are_not_warned_of() -> None:
    assert said_of_lungs(lungs(SHAPE, LEFT, RIGHT), (5.0, 5.0, 5.0)) == []


@pytest.mark.parametrize(("voxel_mm", "said"), [(2.0, "have 384 mL together"), (6.0, "have 10368 mL together")])
def test_lungs_too_small_or_too_large_for_an_adult_are_warned_of(voxel_mm: float, said: str) -> None:
    (warning,) = said_of_lungs(lungs(SHAPE, LEFT, RIGHT), (voxel_mm, voxel_mm, voxel_mm))
    assert said in warning


def test_small_lungs_that_the_scan_cuts_are_warned_of_once() -> None:
    labels = lungs(SHAPE, LEFT, RIGHT)[5:]
    (warning,) = said_of_lungs(labels, (2.0, 2.0, 2.0))
    assert "touch the border of the scan (feet)" in warning


@pytest.mark.parametrize(("slices", "share"), [(7, "15%"), (8, None)])
def test_a_lung_that_is_missing_is_warned_of_by_its_side(slices: int, share: str | None) -> None:
    said = said_of_lungs(lungs(SHAPE, np.s_[5 : 5 + slices, 5:35, 30:50], RIGHT), (5.0, 5.0, 5.0))
    assert bool(said) == (share is not None)  # 7 / 47 = 14.9 %, 8 / 48 = 16.7 %
    assert share is None or f"The left lung has only {share} of the lung volume" in said[0]


@pytest.mark.parametrize(
    ("slices", "said"), [(np.s_[:40], "mostly the abdomen"), (np.s_[20:], "mostly the neck"), (np.s_[:], None)]
)
def test_lungs_cut_off_in_a_scan_of_another_region(slices: slice, said: str | None) -> None:
    labels = lungs((60, 40, 55), np.s_[20:40, 5:35, 30:50], np.s_[20:40, 5:35, 5:25])[slices]
    found = said_of_lungs(labels, (5.0, 5.0, 5.0))
    assert any("Lung is on only 50% of the slices" in warning for warning in found) == (said is not None)
    assert said is None or any(said in warning for warning in found)


def test_air_around_the_patient_that_was_labelled_is_warned_of() -> None:
    labels = lungs(SHAPE, LEFT, RIGHT)
    hu = np.full(SHAPE, -1000, np.int16)
    hu[:, :, :28] = 40
    hu[labels == 2] = -850  # the right lung lies in the body, the left one in air
    (warning,) = check_lungs(labels, hu, (5.0, 5.0, 5.0), measure(labels, hu, (5.0, 5.0, 5.0)))
    assert "50% of what was labelled is air around the patient" in warning


def test_only_air_that_the_body_does_not_enclose_counts_as_outside() -> None:
    hu = np.full((2, 6, 12), -1000, np.int16)  # air around the patient
    hu[:, 1:, 1:11] = 40
    hu[:, 2:5, 2:6] = -1000  # as light, but enclosed
    hu[:, 2:6, 7:9] = -850  # lung that the scan cuts off
    labels = np.zeros(hu.shape, np.uint8)
    labels[hu == -850], labels[:, 2:5, 2:6] = 1, 2
    assert outside_air_share(labels, hu, (5.0, 5.0, 5.0)) == 0.0
    labels[:, 0, :4] = 3  # beside 8 and 12 labelled voxels in each slice
    assert outside_air_share(labels, hu, (5.0, 5.0, 5.0)) == pytest.approx(4 / 24)
    assert outside_air_share(np.zeros_like(labels), hu, (5.0, 5.0, 5.0)) == 0.0


def test_a_scan_without_any_label_is_warned_of_once() -> None:
    (warning,) = said_of_lungs(np.zeros(SHAPE, np.uint8), (5.0, 5.0, 5.0))
    assert "found no lung" in warning
