"""The offset of a network that answers too little is found, and lands in every exported file."""

from dataclasses import replace

import nibabel
import numpy as np
import pytest
import torch
from phantom import PHANTOM_SPACING_MM, phantom_hu, phantom_labels, spl_affine

from covidseg_export.calibration import LungVoxels
from covidseg_export.decision import choose_offset, decision_in_a_line, dsc_at, takes_offset, with_offset
from covidseg_export.ensemble import FoldEnsemble
from covidseg_export.export_run import held_out_by_folds, move_decision
from covidseg_export.source import ExportSource, SourceCases
from covidseg_runtime.bundle import PreprocessingSpec
from covidseg_runtime.errors import SettingsError
from covidseg_runtime.intensity import HounsfieldScaling
from covidseg_runtime.tiling import TilePlan
from covidseg_train.hybrid import HybridEncoderUNet
from covidseg_train.unet import UNet3d, UNetSpec

SPEC = UNetSpec(classes=3, widths=(4, 8), strides=((2, 2, 2),), supervised_levels=1)


def case(shift, *, voxels=20_000, seed=0):
    """Voxels whose infected ones have the highest logit, but for ``shift`` that was taken from it."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (3, voxels)).astype(np.float32)
    infected = logits.argmax(axis=0) == 2
    logits[2] -= np.float32(shift)
    return LungVoxels(f"case {seed}", logits, infected)


@pytest.mark.parametrize("shift", [-1.5, -0.25, 0.0, 0.75, 2.0])
def test_what_was_taken_from_the_logit_is_given_back(shift):
    decision = choose_offset([case(shift), case(shift, seed=1)])
    assert decision.offset == shift
    assert decision.dsc_after == 1.0
    assert decision.dsc_before == pytest.approx(np.mean([dsc_at(case(shift, seed=seed), 0.0) for seed in (0, 1)]))


def test_the_mean_over_cases_decides_whatever_their_size():
    large, small = case(0.0, voxels=50_000), [case(1.0, voxels=1000, seed=seed) for seed in (1, 2, 3)]
    assert choose_offset([large, *small]).offset > 0.5


def test_cases_without_infection_have_no_say_but_are_named():
    healthy = LungVoxels("healthy", case(0.0).logits, np.zeros(20_000, np.bool_))
    decision = choose_offset([case(1.0), healthy])
    assert (decision.offset, decision.cases) == (1.0, ("case 0", "healthy"))


def test_where_all_offsets_are_alike_none_is_chosen():
    logits = np.zeros((3, 10), np.float32)
    logits[2] = 50.0
    assert choose_offset([LungVoxels("sure", logits, np.ones(10, np.bool_))]).offset == 0.0


@pytest.mark.parametrize("build", [UNet3d, HybridEncoderUNet])
def test_the_offset_is_added_to_the_last_class_alone_and_the_network_given_stays(build):
    torch.manual_seed(0)
    network = build(SPEC).eval()
    tiles = torch.randn(1, 1, 16, 16, 16)
    with torch.inference_mode():
        before = network.finest_logits(tiles)
        after = with_offset(network, 1.25).finest_logits(tiles)
        again = network.finest_logits(tiles)
    expected = before + torch.tensor([0.0, 0.0, 1.25]).view(1, 3, 1, 1, 1)
    assert torch.allclose(after, expected, atol=1e-6)
    assert torch.equal(before, again)


def test_an_ensemble_takes_none():
    assert takes_offset(UNet3d(SPEC))
    assert not takes_offset(FoldEnsemble([UNet3d(SPEC)]))


def test_the_line_says_what_it_was_chosen_on():
    line = decision_in_a_line(choose_offset([case(1.0)]).to_dict())
    assert line.startswith("+1 on the logit of infection, chosen on the 1 cases that validated the training (mean DSC")


def test_the_line_says_that_other_folds_held_the_cases_out():
    line = decision_in_a_line(replace(choose_offset([case(1.0)]), folds=3).to_dict())
    assert "chosen on the 1 cases that 3 other folds of the recipe held out (mean DSC" in line


@pytest.fixture
def drawn_set(tmp_path):
    """Two phantoms as a data set on disk."""
    affine = spl_affine(PHANTOM_SPACING_MM)
    for number in (1, 2):
        for word, voxels in (("ct", phantom_hu()), ("infection", (phantom_labels() == 3).astype(np.uint8))):
            nibabel.save(nibabel.Nifti1Image(voxels, affine), tmp_path / f"simulated_drawn_{number}_{word}.nii.gz")
    return tmp_path


def fold_of(root, held_out):
    torch.manual_seed(1)
    cases = SourceCases("simulated-infection", root, train=("other",), validation=(), held_out=held_out)
    return ExportSource(
        network=UNet3d(SPEC).eval(),
        name=f"without {held_out[0]}",
        version="1.0.0",
        classes=("background", "lung", "infection"),
        preprocessing=PreprocessingSpec("SPL", PHANTOM_SPACING_MM, HounsfieldScaling(-1000.0, 400.0, -500.0, 400.0)),
        tile_plan=TilePlan(tile_shape=(16, 16, 16), step=0.5),
        training={},
        licence="CC0",
        cases=cases,
    )


def test_other_folds_choose_on_what_they_held_out(drawn_set):
    source, fold = fold_of(drawn_set, ("simulated_drawn_1",)), fold_of(drawn_set, ("simulated_drawn_2",))
    moved = move_decision(source, lambda line: None, held_out_by_folds(source, [fold]), folds=1)
    assert moved.decision is not None
    assert (moved.decision["cases"], moved.decision["folds"]) == (["simulated_drawn_2"], 1)
    change = moved.network.heads[0].bias - source.network.heads[0].bias
    assert change.tolist() == pytest.approx([0.0, 0.0, moved.decision["infection_offset"]])


def test_a_fold_that_held_out_the_same_case_has_no_say(drawn_set):
    source = fold_of(drawn_set, ("simulated_drawn_1",))
    with pytest.raises(SettingsError, match="both hold out simulated_drawn_1"):
        held_out_by_folds(source, [source])
