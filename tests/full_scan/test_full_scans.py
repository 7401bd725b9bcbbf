"""What the shipped model promises, on whole scans of patients it never saw.

The scans are too large for the repository: they are looked for in COVIDSEG_TEST_DATA, else in ../shared/data beside it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest

from covidseg_runtime import Segmenter, compare_label_maps, read_label_map, read_volume
from covidseg_runtime.evaluation import align_truth
from covidseg_runtime.metrics import dice
from covidseg_runtime.volume import Volume

DATA = Path(os.environ.get("COVIDSEG_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
LARGEST_PEAK_MIB = 1500

pytestmark = [
    pytest.mark.full_scan,
    pytest.mark.skipif(not (DATA / "covid").is_dir(), reason=f"no scans in {DATA}; set COVIDSEG_TEST_DATA"),
]


@pytest.fixture(scope="module")
def segmenter():
    with Segmenter.open(engine="openvino", device="cpu") as opened:
        yield opened


@pytest.mark.parametrize(("case", "least"), [("LUNG1-001", 0.94), ("LUNG1-002", 0.88)])
def test_lungs_with_tumours_are_labelled_as_lung_or_infection(segmenter, case, least):
    """The contours leave the tumour out, so the truth is their union."""
    scan = read_volume(DATA / "ct" / f"{case}_ct.nii.gz")
    lungs, tumour = (
        align_truth(scan, read_label_map(DATA / path), truth_kind="infection") > 0
        for path in (f"lungs/{case}_lungs.nii.gz", f"lesions/{case}_gtv.nii.gz")
    )
    assert dice(segmenter.segment(scan).labels > 0, lungs | tumour) >= least


def test_infection_of_the_held_out_patient_is_found(segmenter):
    scan = read_volume(DATA / "covid" / "coronacases_002_ct.nii.gz")
    truth = read_label_map(DATA / "covid" / "coronacases_002_infection.nii.gz")
    prediction = Volume(segmenter.segment(scan).labels, scan.affine)
    (agreement,) = compare_label_maps(prediction, truth, truth_kind="infection")
    assert agreement.dice >= 0.65


def test_a_large_scan_stays_on_its_grid_and_within_its_memory(tmp_path):
    """512×512×261 voxels, in a process of its own so that its peak is its own."""
    scan, labels = DATA / "ct" / "LIDC-IDRI-0002_ct.nii.gz", tmp_path / "labels.nii.gz"
    command = [sys.executable, "-m", "covidseg", "segment", str(scan), "-o", str(labels)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    # Its own word: what the system tells of a child counts what this process had when it made it.
    (peak_mib,) = re.findall(r"peak memory (\d+) MiB", done.stderr)
    assert int(peak_mib) < LARGEST_PEAK_MIB
    source, result = nibabel.load(scan), nibabel.load(labels)
    assert result.shape == source.shape == (512, 512, 261)
    assert np.array_equal(result.affine, source.affine)
    lungs_ml = np.count_nonzero(np.asanyarray(result.dataobj)) * np.prod(source.header.get_zooms()) / 1000
    assert 2000 < lungs_ml < 9000
