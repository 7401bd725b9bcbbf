"""Fixtures of every test: a phantom scan, its truth, and a bundle that labels it."""

from __future__ import annotations

from pathlib import Path

import nibabel
import pytest
from phantom import PHANTOM_SPACING_MM, phantom_hu, phantom_labels, spl_affine, tiny_model, write_tiny_bundle


@pytest.fixture
def tiny_bundle(tmp_path: Path) -> Path:
    """Folder of a bundle that labels the phantom."""
    return write_tiny_bundle(tmp_path / "tiny", tiny_model())


@pytest.fixture
def phantom_scan(tmp_path: Path) -> Path:
    """The phantom as a NIfTI file."""
    path = tmp_path / "phantom.nii.gz"
    nibabel.save(nibabel.Nifti1Image(phantom_hu(), spl_affine(PHANTOM_SPACING_MM)), path)
    return path


@pytest.fixture
def phantom_truth(tmp_path: Path) -> Path:
    """The phantom's labels as a NIfTI file."""
    path = tmp_path / "truth.nii.gz"
    nibabel.save(nibabel.Nifti1Image(phantom_labels(), spl_affine(PHANTOM_SPACING_MM)), path)
    return path
