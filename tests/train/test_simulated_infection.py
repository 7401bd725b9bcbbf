"""Simulated infection in a drawn (simulated) chest with noise and vessels, whose lungs are known."""

from __future__ import annotations

from dataclasses import replace

import nibabel
import numpy as np
import pytest
from drawn_chest import SPACING_MM, drawn_chest, write_drawn_case
from scipy import ndimage

from covidseg_runtime.errors import SettingsError, VolumeError
from covidseg_runtime.volume_files import read_label_map, read_volume
from covidseg_train.datasets.catalog import get_dataset
from covidseg_train.simulated_cases import write_simulated_cases
from covidseg_train.simulated_infection import simulate_infection
from covidseg_train.simulated_lesions import SimulationSettings

SPACING = (SPACING_MM,) * 3
NOISE_HU = 25.0
ONE_LARGE = SimulationSettings(lesion_count=(1, 1), total_ml=(120.0, 120.0), mottling_hu=(0.0, 0.0))
GROUND_GLASS = replace(ONE_LARGE, kind_weights=(1.0, 0.0, 0.0))
CONSOLIDATION = replace(ONE_LARGE, kind_weights=(0.0, 1.0, 0.0), consolidated_share=(1.0, 1.0))
CRAZY_PAVING = replace(ONE_LARGE, kind_weights=(0.0, 0.0, 1.0))


def noisy_chest():
    """HU with noise, and with vessels every 15 mm along x; lungs as label_lungs gives them; the vessels."""
    hu, left, right, *_ = drawn_chest()
    lungs = (left + 2 * right).astype(np.uint8)
    vessels = np.zeros(hu.shape, bool)
    vessels[::5, ::5] = True
    vessels &= lungs > 0
    hu[vessels] = 40
    noise = np.random.default_rng(0).normal(0.0, NOISE_HU, hu.shape)
    return (hu + noise).astype(np.int16), lungs, vessels


HU, LUNGS, VESSELS = noisy_chest()


def simulate(settings, seed=1, lungs=LUNGS):
    return simulate_infection(HU, lungs, SPACING, np.random.default_rng(seed), settings)


def inner(case):
    """Lesion away from its soft border, without vessels."""
    return ndimage.binary_erosion(case.lesion, iterations=2) & ~VESSELS


def test_seed_decides():
    first, same, other = (simulate(SimulationSettings(), seed) for seed in (5, 5, 6))
    assert first.hu.dtype == np.int16
    assert np.array_equal(first.hu, same.hu)
    assert np.array_equal(first.lesion, same.lesion)
    assert not np.array_equal(first.lesion, other.lesion)


def test_the_given_scan_is_not_changed():
    hu, lungs = HU.copy(), LUNGS.copy()
    simulate_infection(hu, lungs, SPACING, np.random.default_rng(1), SimulationSettings())
    assert np.array_equal(hu, HU)
    assert np.array_equal(lungs, LUNGS)


@pytest.mark.parametrize("settings", [SimulationSettings(), GROUND_GLASS, CONSOLIDATION, CRAZY_PAVING])
def test_lesion_is_what_was_changed(settings):
    case = simulate(settings)
    changed = case.hu != HU
    assert not (changed | case.lesion)[LUNGS == 0].any()
    # Three SD of the softest border, 2.5 mm, and half a voxel's diagonal.
    beyond = ndimage.distance_transform_edt(~case.lesion, sampling=SPACING) > 7.5 + 2.6
    assert not changed[beyond].any()
    tissue = case.lesion & ~VESSELS
    assert changed[tissue].mean() > 0.97
    assert (case.hu - HU)[tissue].mean() > 100


def test_volume_is_the_one_asked_for():
    ml = simulate(GROUND_GLASS).lesion.sum() * np.prod(SPACING) / 1000
    assert ml == pytest.approx(120, rel=0.1)


def test_ground_glass_lies_below_consolidation():
    for seed in range(3):
        glass, dense = simulate(GROUND_GLASS, seed), simulate(CONSOLIDATION, seed)
        assert -640 < glass.hu[inner(glass)].mean() < -380
        assert -110 < np.median(dense.hu[inner(dense)]) < 60


def test_air_bronchograms_run_through_consolidation():
    # Wide enough for voxels of 3 mm.
    case = simulate(replace(CONSOLIDATION, bronchus_radius_mm=(3.0, 3.0)))
    dark = inner(case) & (case.hu < -400)
    _, count = ndimage.label(dark, np.ones((3, 3, 3)))
    assert 0.002 < dark.sum() / inner(case).sum() < 0.15
    assert dark.sum() / count > 5  # tubes, not specks


def test_crazy_paving_has_denser_septa_than_ground_glass():
    # Far enough apart for voxels of 3 mm.
    paved, glass = simulate(replace(CRAZY_PAVING, septa_spacing_mm=(16.0, 16.0))), simulate(GROUND_GLASS)
    assert np.array_equal(paved.lesion, glass.lesion)
    denser = (paved.hu.astype(int) - glass.hu)[inner(paved)]
    assert 0.1 < (denser > 75).mean() < 0.7
    assert 100 < denser.max() <= 250


def test_vessels_stay_visible_through_ground_glass():
    case = simulate(GROUND_GLASS)
    vessels = VESSELS & ndimage.binary_erosion(case.lesion, iterations=2)
    assert vessels.sum() > 20
    assert (case.hu[vessels] >= HU[vessels]).all()
    assert case.hu[vessels].min() > case.hu[inner(case)].mean() + 200


def test_noise_of_the_host_is_kept():
    def noise_sd(hu, where):
        return np.diff(hu.astype(float), axis=2)[where[:, :, 1:] & where[:, :, :-1]].std() / np.sqrt(2)

    glass, dense = simulate(GROUND_GLASS), simulate(replace(CONSOLIDATION, consolidation_hu=(0.0, 0.0)))
    near_bronchus = ndimage.binary_dilation(dense.hu < -120, np.ones((3, 3, 3)))
    assert 0.7 < noise_sd(glass.hu, inner(glass)) / NOISE_HU < 1.3
    assert 0.7 < noise_sd(dense.hu, inner(dense) & ~near_bronchus) / NOISE_HU < 1.3


def test_lesions_are_peripheral_posterior_and_basal_in_the_mean():
    lungs = LUNGS > 0
    depth = ndimage.distance_transform_edt(lungs, sampling=SPACING)
    z, y, _ = np.indices(lungs.shape)
    small = replace(SimulationSettings(), total_ml=(8.0, 60.0))
    lesions = [simulate(small, seed).lesion for seed in range(12)]
    for measure, sign in ((depth, -1), (y, 1), (z, -1)):
        in_lesions = np.mean([measure[lesion].mean() for lesion in lesions])
        assert sign * (in_lesions - measure[lungs].mean()) > 0.1 * measure[lungs].std()


def test_both_lungs_or_one():
    many = SimulationSettings(lesion_count=(12, 12))
    both = simulate(replace(many, bilateral_probability=1.0)).lesion
    one = simulate(replace(many, bilateral_probability=0.0)).lesion
    assert set(np.unique(LUNGS[both])) == {1, 2}
    assert len(np.unique(LUNGS[one])) == 1


def test_infection_of_the_host_is_kept_and_united():
    lungs = LUNGS.copy()
    lungs[10:30, 45:58, 20:45][lungs[10:30, 45:58, 20:45] > 0] = 3
    case = simulate(SimulationSettings(lesion_count=(12, 12), total_ml=(300.0, 300.0)), lungs=lungs)
    assert case.lesion[lungs == 3].all()
    assert np.array_equal(case.hu[lungs == 3], HU[lungs == 3])
    assert case.lesion.sum() > (lungs == 3).sum()


def test_no_lungs_is_refused():
    with pytest.raises(VolumeError, match="no lungs"):
        simulate(SimulationSettings(), lungs=np.zeros_like(LUNGS))
    with pytest.raises(VolumeError, match="one grid"):
        simulate(SimulationSettings(), lungs=LUNGS[1:])


@pytest.mark.parametrize(
    "wrong", [{"total_ml": (9.0, 3.0)}, {"lesion_count": (0, 3)}, {"kind_weights": (0.0, 0.0, 0.0)}]
)
def test_settings_without_meaning_are_refused(wrong):
    with pytest.raises(SettingsError, match=next(iter(wrong))):
        SimulationSettings(**wrong)


def write_host(folder, name, hu, in_plane_mm=SPACING_MM):
    affine = np.diag([-in_plane_mm, -in_plane_mm, SPACING_MM, 1.0])  # LPS
    affine[:3, 3] = (90.0, 70.0, -300.0)
    nibabel.save(nibabel.Nifti1Image(np.ascontiguousarray(hu.T), affine), folder / name)
    return folder / name


def test_written_cases_are_read_by_the_data_set(tmp_path):
    host = write_host(tmp_path, "host_1_ct.nii.gz", HU)
    for seed_folder in ("first", "second"):
        (tmp_path / seed_folder).mkdir()
        write_simulated_cases([host], tmp_path / seed_folder, per_host=2, seed=7)
    dataset = get_dataset("simulated-infection")
    cases = dataset.find_cases(tmp_path / "first")
    assert dataset.is_simulated
    assert [(case.name, case.patient) for case in cases] == [
        ("simulated_host_1_1", "host_1"),
        ("simulated_host_1_2", "host_1"),
    ]
    source = read_volume(host)
    for case in cases:
        read = dataset.read(case)
        assert np.allclose(read.ct.affine, source.affine)
        changed = read.ct.voxels != source.voxels
        assert read.lesion.voxels.any()
        assert changed[read.lesion.voxels > 0].mean() > 0.9
        assert changed.sum() < 0.5 * (LUNGS > 0).sum()
        again = tmp_path / "second"
        assert case.ct.read_bytes() == (again / case.ct.name).read_bytes()
        assert case.lesion.read_bytes() == (again / case.lesion.name).read_bytes()


def test_a_fine_host_is_halved_in_its_plane(tmp_path):
    hu = drawn_chest()[0]
    host = write_host(tmp_path, "fine.nii.gz", hu.repeat(2, axis=1).repeat(2, axis=2), 0.98)
    write_simulated_cases([host], tmp_path, per_host=1, seed=1)
    fine, case = read_volume(host), read_volume(tmp_path / "simulated_fine_1_ct.nii.gz")
    assert case.spacing_mm == (1.96, 1.96, 3.0)
    # Four fine voxels and their mean share one centre.
    assert np.allclose(case.affine @ [0, 0, 0, 1], fine.affine @ [0.5, 0.5, 0, 1])
    kept = case.voxels == fine.voxels[::2, ::2]
    assert 0.95 < kept.mean() < 1


def test_infection_marked_beside_a_host_is_kept_and_marked(tmp_path):
    host = read_volume(write_drawn_case(tmp_path, "host"))
    own = read_label_map(tmp_path / "host_infection.nii.gz").voxels > 0
    write_simulated_cases([tmp_path / "host_ct.nii.gz"], tmp_path, per_host=1, seed=4)
    case = get_dataset("simulated-infection").read(get_dataset("simulated-infection").find_cases(tmp_path)[0])
    assert (case.lesion.voxels[own] == 1).all()
    assert case.lesion.voxels.sum() > own.sum() + 100
    assert np.array_equal(case.ct.voxels[own], host.voxels[own])


def test_two_hosts_of_one_name_are_refused(tmp_path):
    with pytest.raises(SettingsError, match="one name"):
        write_simulated_cases([tmp_path / "a_ct.nii.gz", tmp_path / "a.nii.gz"], tmp_path, per_host=1, seed=0)
