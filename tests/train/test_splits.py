"""The benchmark's splits as published, and the patient that sits on both sides of two folds."""

from itertools import combinations

import pytest

from covidseg_runtime.errors import SettingsError
from covidseg_train.datasets.covid_19_ct_seg_rebuilt import patient_of
from covidseg_train.splits import (
    BenchmarkFold,
    Leak,
    find_leaks,
    task1_80_20_folds,
    task1_folds,
    task2_split,
    task3_folds,
    without_leaks,
)

CORONACASES = [f"coronacases_{number:03}" for number in range(1, 11)]
TWICE_SCANNED = ("radiopaedia_10_85902_1", "radiopaedia_10_85902_3")
SIZES = {  # train, validation: as counted in the benchmark's files
    "msd-lung-tumour": (51, 12),
    "structseg-2019-gtv": (40, 10),
    "nsclc-pleural-effusion": (63, 15),
    "structseg-2019-lung": (40, 10),
    "nsclc-lung": (322, 80),
}
LESION_SETS = ("msd-lung-tumour", "structseg-2019-gtv", "nsclc-pleural-effusion")


def sizes(fold):
    return tuple(len(part) for part in fold.parts())


def assert_disjoint(fold):
    for first, second in combinations(fold.parts(), 2):
        assert not set(first) & set(second)
    assert all(len(set(part)) == len(part) for part in fold.parts())


def test_task_1_is_five_folds_of_4_and_16():
    folds = task1_folds()
    assert [sizes(fold) for fold in folds] == [(4, 0, 16)] * 5
    for fold in folds:
        assert_disjoint(fold)
        assert len({*fold.train, *fold.test}) == 20
        assert sum(name.startswith("coronacases") for name in fold.train) == 2


def test_the_five_train_sets_of_task_1_partition_the_20_cases():
    trained = [name for fold in task1_folds() for name in fold.train]
    assert len(trained) == len(set(trained)) == 20
    assert sorted(trained)[:10] == CORONACASES
    assert sum(name.startswith("radiopaedia_") for name in trained) == 10


def test_the_first_fold_is_the_published_one():
    assert set(task1_folds()[0].train) == {
        "coronacases_007",
        "coronacases_008",
        "radiopaedia_36_86526_0",
        "radiopaedia_4_85506_1",
    }


def test_task_1_80_20_is_task_1_reversed():
    for fold, reverse in zip(task1_folds(), task1_80_20_folds(), strict=True):
        assert sizes(reverse) == (16, 0, 4)
        assert set(reverse.train) == set(fold.test)
        assert set(reverse.test) == set(fold.train)


@pytest.mark.parametrize("dataset", SIZES)
def test_task_2_trains_on_one_set_and_tests_on_all_covid_cases(dataset):
    split = task2_split(dataset)
    assert sizes(split) == (*SIZES[dataset], 20)
    assert_disjoint(split)
    assert set(split.test) == {name for fold in task1_folds() for name in fold.train}


def test_task_2_holds_every_case_of_the_lesion_sets():
    def cases(dataset):
        return {*task2_split(dataset).train, *task2_split(dataset).validation}

    assert cases("structseg-2019-gtv") == {f"train_{number}" for number in range(1, 51)}
    assert all(name.startswith("LUNG1-") for name in cases("nsclc-pleural-effusion"))
    assert all(name.startswith("lung_") for name in cases("msd-lung-tumour"))


@pytest.mark.parametrize("dataset", LESION_SETS)
def test_task_3_joins_the_lesion_set_with_the_folds_four_cases(dataset):
    train, validation = SIZES[dataset]
    for fold, target in zip(task3_folds(dataset), task1_folds(), strict=True):
        assert sizes(fold) == (train + 4, validation, 16)
        assert_disjoint(fold)
        assert set(fold.train) - set(task2_split(dataset).train) == set(target.train)
        assert fold.validation == task2_split(dataset).validation
        assert fold.test == target.test


def test_a_set_the_benchmark_does_not_split_is_refused():
    with pytest.raises(SettingsError, match="no split of 'lidc-idri'; it splits msd-lung-tumour, "):
        task3_folds("lidc-idri")


def test_the_published_folds_2_and_4_train_on_a_patient_they_test():
    first, third = TWICE_SCANNED
    patient = "radiopaedia_10_85902"
    leaks = (Leak(2, patient, (first, third)), Leak(4, patient, (third, first)))
    assert find_leaks(task1_folds(), patient_of) == leaks
    assert [leak.fold for leak in find_leaks(task1_80_20_folds(), patient_of)] == [2, 4]
    assert find_leaks(task3_folds("msd-lung-tumour"), patient_of) == leaks


@pytest.mark.parametrize("folds", [task1_folds(), task1_80_20_folds(), task3_folds("nsclc-pleural-effusion")])
def test_the_variant_without_leaks_drops_the_other_scan_from_the_test_alone(folds):
    mended = without_leaks(folds, patient_of)
    assert find_leaks(mended, patient_of) == ()
    for index, (fold, other) in enumerate(zip(folds, mended, strict=True)):
        assert (other.train, other.validation) == (fold.train, fold.validation)
        dropped = set(fold.test) - set(other.test)
        assert dropped == (set(TWICE_SCANNED) - set(fold.train) if index in (2, 4) else set())


def test_leaks_through_the_validation_are_found_and_mended():
    fold = BenchmarkFold(train=("a1",), validation=("a2", "b1"), test=("b2", "c1"))

    def patient(case):
        return case[0]

    assert find_leaks([fold], patient) == (Leak(0, "a", ("a1", "a2")), Leak(0, "b", ("b1", "b2")))
    assert without_leaks([fold], patient) == (BenchmarkFold(("a1",), ("b1",), ("c1",)),)
