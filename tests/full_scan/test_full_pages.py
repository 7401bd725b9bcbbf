"""The page of a whole scan is small enough to send, and quick to make."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from browser import needs_browser, opened

DATA = Path(os.environ.get("COVIDSEG_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
LARGEST_PAGE_BYTES = 10_000_000
STATE = "document.documentElement.dataset.viewer"

pytestmark = [
    pytest.mark.full_scan,
    pytest.mark.skipif(not (DATA / "ct").is_dir(), reason=f"no scans in {DATA}; set COVIDSEG_TEST_DATA"),
]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of 512×512×261 voxels, each command in a process of its own."""
    folder = tmp_path_factory.mktemp("large")
    scan, labels = DATA / "ct" / "LIDC-IDRI-0002_ct.nii.gz", folder / "large.nii.gz"
    for command in (["segment", str(scan), "-o", str(labels)], ["report", str(scan), "--labels", str(labels)]):
        subprocess.run([sys.executable, "-m", "covidseg", *command], check=True, capture_output=True)
    return folder / "large.html"


def test_the_page_of_a_large_scan_has_less_than_10_mb(page: Path) -> None:
    assert page.stat().st_size < LARGEST_PAGE_BYTES


@pytest.mark.parametrize("case", ["covid/coronacases_005", "ct/LUNG1-001", "healthy_and_other/covidctmd_normal001"])
def test_the_volumes_of_other_scans_fit_too(case: str) -> None:
    import numpy as np

    from covidseg_runtime import read_volume
    from covidseg_runtime.pages.viewer_volumes import LARGEST_SCAN_BYTES, make_viewer_volumes

    scan = read_volume(DATA / f"{case}_ct.nii.gz")
    volumes = make_viewer_volumes(scan, np.zeros(scan.shape, np.uint8))
    assert len(volumes.scan) <= LARGEST_SCAN_BYTES
    assert volumes.shape == tuple(min(n, most) for n, most in zip(scan.shape, (256, 256, 200), strict=True))
    assert volumes.step_hu <= 26


@needs_browser
def test_the_viewer_counts_slices_as_the_scan_does(page: Path, tmp_path: Path) -> None:
    with opened(page, tmp_path, size=(900, 700)) as opened_page:
        opened_page.wait_for(f"{STATE} !== 'starting'")
        assert opened_page.evaluate(STATE) == "drawn"
        opened_page.evaluate("const slider = document.getElementById('slice'); slider.value = slider.max")
        opened_page.evaluate("document.getElementById('slice').dispatchEvent(new Event('input'))")
        place = opened_page.evaluate("document.getElementById('place').textContent")
        assert place.startswith("261 of 261 from the feet")
        assert opened_page.console == []
