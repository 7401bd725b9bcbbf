"""Other folds of the recipe and another data set, in bundle.json, in the card and in the volume's range."""

import json
from dataclasses import replace

import nibabel
import numpy as np
import pytest
from phantom import PHANTOM_SPACING_MM, phantom_hu, phantom_labels, spl_affine

from covidseg_export.evidence import Evidence, ExternalSet, held_out_rows, measure_evidence
from covidseg_export.model_card import write_model_card
from covidseg_export.parity import ParityLimits
from covidseg_runtime.bundle import default_bundle_path, load_bundle
from covidseg_runtime.errors import BundleError
from covidseg_runtime.segmenter import Segmenter
from covidseg_runtime.volume_range import volume_range
from covidseg_train.datasets.catalog import get_dataset

TRAINING = {
    "dataset": "Hospital A",
    "strategy": "continual",
    "seed": 1,
    "steps": 10,
    "batch_size": 2,
    "patch_shape": [8, 8, 8],
    "optimiser": "adamw",
    "train": ["a", "b"],
    "validation": ["v"],
}


def row(case, *, predicted_ml=80.0, dsc=0.75):
    return {
        "case": case,
        "patient": case,
        "dsc": dsc,
        "nsd_3mm": 0.5,
        "predicted_ml": predicted_ml,
        "reference_ml": 100.0,
    }


def with_card(bundle, **sections):
    return replace(bundle, card={**bundle.card, **sections})


@pytest.fixture
def fold(tiny_bundle):
    """A bundle of one fold: it held out c, and v picked its checkpoint."""
    return with_card(
        load_bundle(tiny_bundle), training=TRAINING, metrics={"held_out": [row("c"), row("v", predicted_ml=100.0)]}
    )


@pytest.fixture
def simulated_set(tmp_path):
    """One phantom as a data set on disk."""
    affine = spl_affine(PHANTOM_SPACING_MM)
    infection = (phantom_labels() == 3).astype(np.uint8)
    nibabel.save(nibabel.Nifti1Image(phantom_hu(), affine), tmp_path / "simulated_drawn_1_ct.nii.gz")
    nibabel.save(nibabel.Nifti1Image(infection, affine), tmp_path / "simulated_drawn_1_infection.nii.gz")
    return ExternalSet(get_dataset("simulated-infection"), tmp_path)


def test_a_case_that_picked_the_checkpoint_is_not_held_out(fold):
    assert [one["case"] for one in held_out_rows(fold)] == ["c"]


def test_folds_stand_in_the_metrics_with_their_name(fold, tiny_bundle):
    with Segmenter.open(str(tiny_bundle)) as segmenter:
        sections = measure_evidence(Evidence(folds=(fold, fold)), {**TRAINING, "train": ["a", "b", "c"]}, segmenter)
    assert [one["case"] for one in sections["cross_validation"]] == ["c", "c"]
    assert sections["cross_validation"][0]["fold"] == f"{fold.name} {fold.version}"
    assert "external" not in sections


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"seed": 2}, "differs in seed"),
        ({"pretraining": [{}], "seed": 2}, "differs in seed, pretraining"),
        ({"validation": ["c", "v"]}, "held no case out"),
    ],
)
def test_a_fold_of_another_recipe_or_without_results_is_refused(fold, tiny_bundle, change, why):
    other = with_card(fold, training={**TRAINING, **change})
    with Segmenter.open(str(tiny_bundle)) as segmenter, pytest.raises(BundleError, match=why):
        measure_evidence(Evidence(folds=(other,)), TRAINING, segmenter)


def test_a_fold_whose_best_checkpoint_came_at_another_step_is_of_the_same_recipe(fold, tiny_bundle):
    other = with_card(fold, training={**TRAINING, "steps": 20})
    with Segmenter.open(str(tiny_bundle)) as segmenter:
        assert measure_evidence(Evidence(folds=(other,)), TRAINING, segmenter)["cross_validation"]


def test_another_data_set_is_measured_and_set_beside(fold, tiny_bundle, simulated_set):
    beside = with_card(fold, metrics={"held_out": [row("simulated_drawn_1", dsc=0.25)]})
    with Segmenter.open(str(tiny_bundle)) as segmenter:
        external = measure_evidence(Evidence(external=simulated_set, against=(beside,)), TRAINING, segmenter)
    (found,) = external["external"]["results"]
    assert found["dsc"] > 0.9
    assert external["external"]["against"][0]["dsc"] == 0.25


@pytest.mark.parametrize("learned", [["simulated_drawn_1"], ["*"]])
def test_a_set_that_was_learned_from_is_refused(tiny_bundle, simulated_set, learned):
    source = {"dataset": simulated_set.dataset.title, "train": learned}
    training = {**TRAINING, "pretraining": [{**TRAINING, "sources": [source]}]}
    with Segmenter.open(str(tiny_bundle)) as segmenter, pytest.raises(BundleError, match="never met"):
        measure_evidence(Evidence(external=simulated_set), training, segmenter)


def test_the_range_of_the_volume_comes_from_the_cross_validation(fold):
    folds = [row(str(n), predicted_ml=50.0) for n in range(5)]
    found = volume_range(with_card(fold, metrics={"held_out": [row("c")], "cross_validation": folds}), 10.0)
    assert found is not None
    assert (found.low_ml, found.high_ml, found.cases) == (20.0, 20.0, 5)


def test_the_card_tells_both_and_leaves_tiny_references_out():
    tiny = {**row("tiny", dsc=0.0), "reference_ml": 0.3}
    description = json.loads((default_bundle_path() / "bundle.json").read_text("utf-8"))
    description["metrics"] = {
        "held_out": [row("d")],
        "cross_validation": [{**row("c"), "fold": "one 1.0.0"}, {**row("d"), "fold": "two 1.0.0"}],
        "external": {
            "dataset": "Hospital B",
            "limits": "Guessed spacing.",
            "results": [row("x"), row("y", dsc=0.25), tiny],
            "against": [{**row("x", dsc=0.875), "bundle": "other 2.0.0"}],
        },
    }
    card = write_model_card(description, ParityLimits())
    folds, external = (
        card.split(f"\n## {title}\n")[1].split("\n## ")[0]
        for title in ("Cross-validation of the recipe", "Measured on Hospital B")
    )
    assert "2 networks trained alike" in folds
    assert "mean 0.750 over n = 2 patients" in folds
    assert "off by 20% in the median" in folds
    assert "mean 0.500 over n = 2 patients" in external
    assert "Not averaged, less than 1 mL: tiny." in external
    assert "| tiny | 0.000 |" in external
    assert "beside other 2.0.0, on the 1 of these cases" in external
    assert "mean DSC 0.750 against 0.875, a difference of -0.125" in external
