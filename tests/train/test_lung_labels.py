"""A drawn chest: two lungs of known size, a trachea, bowel gas, an infection at the border."""

import numpy as np
import pytest
from drawn_chest import drawn_chest

from covidseg_runtime.errors import VolumeError
from covidseg_train.lung_labels import count_as_lung, label_lungs

SPACING = (3.0, 3.0, 3.0)


def test_lungs_are_found_and_parted():
    hu, left, right, trachea, bowel = drawn_chest()
    labels = label_lungs(hu, np.zeros(hu.shape, bool), SPACING)
    for label, truth in ((1, left), (2, right)):
        found = labels == label
        assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.97
    assert not labels[bowel].any()
    assert labels[trachea].mean() < 0.05


def test_infection_wins_and_is_kept_whole():
    hu, _, right, _, _ = drawn_chest()
    infection = np.zeros(hu.shape, bool)
    infection[28:36, 50:58, 28:40] = True
    hu[infection] = 0
    labels = label_lungs(hu, infection, SPACING)
    assert (labels[infection] == 3).all()
    assert (labels == 3).sum() == infection.sum()


def test_what_counts_as_lung_goes_to_the_lung_it_lies_in():
    hu, _, right, _, _ = drawn_chest()
    tumour = np.zeros(hu.shape, bool)
    tumour[28:36, 50:58, 28:40] = True
    hu[tumour] = 0
    labels = label_lungs(hu, tumour, SPACING)
    counted = count_as_lung(labels)
    assert not (counted == 3).any()
    assert (counted[tumour & right] == 2).all()
    assert np.array_equal(counted[~tumour], labels[~tumour])


def test_mirrored_chest_swaps_the_labels():
    hu, *_ = drawn_chest()
    none = np.zeros(hu.shape, bool)
    labels = label_lungs(hu, none, SPACING)
    mirrored = label_lungs(np.ascontiguousarray(hu[:, :, ::-1]), none, SPACING)[:, :, ::-1]
    assert ((labels == 1) == (mirrored == 2)).mean() > 0.999


def test_no_lungs_is_refused():
    with pytest.raises(VolumeError, match="No lungs were found"):
        label_lungs(np.full((20, 20, 20), 40, np.int16), np.zeros((20, 20, 20), bool), SPACING)
