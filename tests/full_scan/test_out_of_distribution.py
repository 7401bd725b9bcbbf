"""No chest CT at hand is refused or warned of for its values, and what is no whole chest never gives a quiet number.

The scans are too large for the repository: they are looked for in COVIDSEG_TEST_DATA, else in ../shared/data beside it.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from covidseg_runtime import Segmenter, VolumeError, read_volume
from covidseg_runtime.scan_checks import check_scan
from covidseg_runtime.segment_settings import SegmentSettings
from covidseg_runtime.volume import Volume, to_orientation

DATA = Path(os.environ.get("COVIDSEG_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
CHESTS = [
    path for folder in ("covid", "ct", "healthy_and_other") for path in sorted((DATA / folder).glob("*_ct.nii.gz"))
]
HEAD = DATA / "out_of_distribution" / "philips_head_phantom_5mm_ct.nii.gz"
ABDOMEN = DATA / "out_of_distribution" / "ircad_abdomen_ct.nii.gz"

pytestmark = [
    pytest.mark.full_scan,
    pytest.mark.skipif(not (DATA / "covid").is_dir(), reason=f"no scans in {DATA}; set COVIDSEG_TEST_DATA"),
]


@pytest.fixture(scope="module")
def segmenter():
    settings = SegmentSettings(quality="fast")
    with Segmenter.open(engine="openvino", device="cpu", settings=settings) as opened:
        yield opened


def turned(path: Path) -> Volume:
    """(Z, Y, X), from the feet to the head."""
    return to_orientation(read_volume(path), "SPL")


@pytest.mark.parametrize("path", CHESTS, ids=lambda path: path.name.removesuffix("_ct.nii.gz"))
def test_a_chest_has_no_warning_before_it_is_segmented(path):
    scan = turned(path)
    assert check_scan(scan.voxels, scan.spacing_mm) == ()


def test_a_head_is_warned_of():
    scan = turned(HEAD)
    assert "has the density of soft tissue" in " ".join(check_scan(scan.voxels, scan.spacing_mm))


def test_an_abdomen_without_its_lung_bases_is_warned_of():
    scan = turned(ABDOMEN)
    below_the_lungs = scan.voxels[: len(scan.voxels) // 2]
    assert "is as light as lung" in " ".join(check_scan(below_the_lungs, scan.spacing_mm))


def test_an_abdomen_with_lung_bases_is_warned_of_as_such(segmenter):
    said = " ".join(segmenter.segment(read_volume(ABDOMEN)).warnings)
    assert "touch the border of the scan (head)" in said
    assert "mostly the abdomen" in said


def test_a_chest_with_one_airless_side_is_warned_of(segmenter):
    """Made from a real one: soft tissue instead of lung, left of the middle."""
    scan = turned(DATA / "covid" / "radiopaedia_29_86491_1_128_ct.nii.gz")
    airless = scan.voxels.copy()
    left = airless[:, 20:108, 64:118]
    left[left < -200] = 40
    said = " ".join(segmenter.segment(Volume(airless, scan.affine)).warnings)
    assert "The left lung has only" in said or "is air around the patient" in said


def test_water_and_noise_give_no_quiet_number(segmenter):
    """A cylinder of 240 mm in air."""
    y, x = np.ogrid[:160, :160]
    hu = np.full((60, 160, 160), -1000, np.int16)
    hu[:, (y - 80) ** 2 + (x - 80) ** 2 < 60**2] = 0
    affine = np.array([[0, 0, -2.0, 0], [0, -2.0, 0, 0], [2.5, 0, 0, 0], [0, 0, 0, 1]])
    said = " ".join(segmenter.segment(Volume(hu, affine)).warnings)
    assert "is as light as lung" in said
    assert any(why in said for why in ("is air around the patient", "found no lung", "lung has only 0% of the lung"))
    noise = np.random.default_rng(0).integers(-1000, 400, hu.shape, dtype=np.int16)
    with pytest.raises(VolumeError, match="hardly alike"):
        segmenter.segment(Volume(noise, affine))
