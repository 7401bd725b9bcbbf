"""Fingerprints of drawn (simulated) cases, and grids planned by hand."""

import nibabel
import numpy as np
import pytest
from drawn_chest import write_drawn_case

from covidseg_runtime.errors import VolumeError
from covidseg_train.config import config_from_dict
from covidseg_train.datasets.covid_19_ct_seg_rebuilt import DATASET
from covidseg_train.fingerprint import Fingerprint, grid_as_toml, measure_fingerprint, plan_grid


def fingerprint_of(spacings_mm, shapes):
    return Fingerprint(
        cases=len(spacings_mm),
        spacings_mm=tuple(spacings_mm),
        shapes=tuple(shapes),
        lesion_hu=(-900.0, -600.0, 50.0),
        lesion_mean_hu=-550.0,
        lesion_sd_hu=210.0,
        all_true_hu=True,
    )


def test_every_lesion_voxel_is_counted(tmp_path):
    ct = write_drawn_case(tmp_path, "a")
    image = nibabel.load(ct)
    voxels = np.asarray(image.dataobj).copy()
    lesion = np.asarray(nibabel.load(tmp_path / "a_infection.nii.gz").dataobj) > 0
    values = np.linspace(-700, 100, lesion.sum()).round()
    voxels[lesion] = values
    nibabel.save(nibabel.Nifti1Image(voxels, image.affine), ct)
    found = measure_fingerprint(DATASET, DATASET.find_cases(tmp_path))
    assert found.cases == 1
    assert found.median_spacing_mm == (3.0, 3.0, 3.0)
    assert found.shapes == ((60, 80, 110),)
    assert found.lesion_mean_hu == pytest.approx(values.mean())
    assert found.lesion_sd_hu == pytest.approx(values.std())
    assert found.lesion_hu == pytest.approx(np.percentile(values, [0.5, 50, 99.5]), abs=2)
    assert found.all_true_hu


def test_the_planned_spacing_is_the_median():
    grid = plan_grid(fingerprint_of([(1.0, 0.7, 0.7), (2.5, 0.8, 0.8), (1.5, 0.9, 0.9)], [(200, 512, 512)] * 3))
    assert grid.spacing_mm == (1.5, 0.8, 0.8)
    assert (grid.scaling.lower_hu, grid.scaling.upper_hu) == (-900.0, 50.0)
    assert (grid.scaling.mean_hu, grid.scaling.sd_hu) == (-550.0, 210.0)


def test_a_coarse_axis_takes_its_tenth_percentile():
    spacings = [(z, 0.8, 0.8) for z in (2.0, 4.0, 6.0, 8.0, 8.0)]
    grid = plan_grid(fingerprint_of(spacings, [(60, 512, 512)] * 5))
    assert grid.spacing_mm == pytest.approx((2.8, 0.8, 0.8))  # between 2 and 4, two fifths of the way


def test_a_coarse_axis_gets_no_finer_than_the_others():
    spacings = [(0.5, 0.8, 0.8), (0.5, 0.8, 0.8), (4.0, 0.8, 0.8), (4.0, 0.8, 0.8), (4.0, 0.8, 0.8)]
    assert plan_grid(fingerprint_of(spacings, [(60, 512, 512)] * 5)).spacing_mm == pytest.approx((0.8, 0.8, 0.8))


def test_thick_slices_of_many_voxels_keep_the_median():
    assert plan_grid(fingerprint_of([(3.0, 0.8, 0.8)], [(300, 512, 512)])).spacing_mm == (3.0, 0.8, 0.8)


def test_no_lesion_at_all_is_one_sentence(tmp_path):
    write_drawn_case(tmp_path, "a")
    path = tmp_path / "a_infection.nii.gz"
    image = nibabel.load(path)
    nibabel.save(nibabel.Nifti1Image(np.zeros(image.shape, np.uint8), image.affine), path)
    with pytest.raises(VolumeError, match="mark no voxel as infection"):
        measure_fingerprint(DATASET, DATASET.find_cases(tmp_path))


def test_the_printed_section_is_read_as_the_grid():
    import tomllib

    grid = plan_grid(fingerprint_of([(1.5, 0.8, 0.8)], [(200, 512, 512)]))
    values = {"name": "x", "data": {"dataset": DATASET.name, "root": "x", "train": ["a"]}}
    assert config_from_dict({**values, **tomllib.loads(grid_as_toml(grid))}).grid == grid
