"""Comparisons of whole scans; every change between the two of a pair is simulated, and known.

The scans are too large for the repository: they are looked for in COVIDSEG_TEST_DATA, else in ../shared/data beside it.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from breath_holds import BreathHold
from follow_up_pairs import Move, moved, simulated_pair, with_lungs

from covidseg_runtime import Segmenter, read_label_map, read_volume
from covidseg_runtime.follow_up.comparison import compare_scans
from covidseg_runtime.follow_up.follow_up_checks import LEAST_LUNG_DICE
from covidseg_runtime.follow_up.labelled_scan import LabelledScan
from covidseg_runtime.volume import MODEL_ORIENTATION, to_orientation

DATA = Path(os.environ.get("COVIDSEG_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))

pytestmark = [
    pytest.mark.full_scan,
    pytest.mark.skipif(not (DATA / "covid").is_dir(), reason=f"no scans in {DATA}; set COVIDSEG_TEST_DATA"),
]


@lru_cache(maxsize=2)  # half of the time went into reading the same scans again
def read_scan(path: str) -> LabelledScan:
    """A scan with the infection of its data set; lungs by threshold."""
    turned = to_orientation(read_volume(DATA / f"{path}_ct.nii.gz"), MODEL_ORIENTATION)
    mask = DATA / f"{path}_infection.nii.gz"
    infection = np.zeros(turned.shape, bool)
    if mask.exists():
        infection = to_orientation(read_label_map(mask), MODEL_ORIENTATION).voxels > 0
    return with_lungs(turned, infection, path)


@pytest.mark.parametrize("host", ["ct/LIDC-IDRI-0003", "covid/coronacases_005"])  # more: benchmarks/follow_up.py
def test_simulated_changes_are_right_to_a_tenth(host):
    pair = simulated_pair(read_scan(host), seed=1)
    move = Move(shift_mm=(6.0, -8.0, 10.0), degrees=(2.0, -3.0, 4.0))
    _, y, x = pair.current.turned.spacing_mm
    follow_up = compare_scans(pair.prior, moved(pair.current, move, (3.0, y, x)))
    for kind in ("new", "resolved", "persistent"):
        _, prior_ml, current_ml = pair.truth.of_kind(kind)
        found = follow_up.lesions.of(kind)
        assert sum(one.prior_ml for one in found) == pytest.approx(prior_ml, rel=0.1)
        assert sum(one.current_ml for one in found) == pytest.approx(current_ml, rel=0.1)
    # The difference of two large volumes: a voxel's worth of border on 150 mL is 3 mL.
    assert follow_up.totals.infection_ml.delta == pytest.approx(pair.truth.delta_ml, rel=0.1, abs=3.0)


def test_different_patients_are_warned_of():  # every pair: benchmarks/follow_up.py
    follow_up = compare_scans(read_scan("covid/coronacases_005"), read_scan("covid/coronacases_002"))
    assert any("are both of one patient?" in warning for warning in follow_up.warnings)


@pytest.mark.parametrize("diaphragm_mm", [25.0, -25.0])
def test_another_breath_hold_makes_no_lesion_new_or_resolved(diaphragm_mm):
    scan = read_scan("covid/coronacases_002")
    hold = BreathHold.of(scan, diaphragm_mm)
    follow_up = compare_scans(scan, hold.scan)
    assert {one.change for one in follow_up.lesions.listed} == {"persistent"}
    assert follow_up.registration.lung_dice > LEAST_LUNG_DICE
    points, before = hold.lung_points()
    error_mm = np.linalg.norm(follow_up.registration.placement.to_prior(points) - before, axis=1)
    assert np.percentile(error_mm, 95) < 3.0


def test_the_networks_labels_do_not_change_because_the_patient_lies_elsewhere():
    scan = read_scan("covid/coronacases_002")
    shifted = moved(scan, Move(shift_mm=(6.0, 4.0, -7.0)), scan.turned.spacing_mm)
    with Segmenter.open() as segmenter:
        labelled = [LabelledScan(one.volume, segmenter.segment(one.volume).labels, one.name) for one in (scan, shifted)]
    follow_up = compare_scans(*labelled)
    totals = follow_up.totals.infection_ml
    # The moved copy is interpolated, and the network finds 5.6 % more in what is smoother.
    assert totals.current == pytest.approx(totals.prior, rel=0.1)
    assert (
        sum(max(one.prior_ml, one.current_ml) for kind in ("new", "resolved") for one in follow_up.lesions.of(kind))
        < 1.0
    )
