"""A scan comes back with its labels in the right place, whatever the order of its axes."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import permutations, product
from pathlib import Path

import nibabel
import numpy as np
import pytest
from phantom import (
    PHANTOM_SPACING_MM,
    phantom_hu,
    phantom_labels,
    pointwise_logits,
    spl_affine,
)

from covidseg_runtime.bundle import load_bundle
from covidseg_runtime.engines.fake_engine import PointwiseEngine
from covidseg_runtime.errors import EngineError, SegmentationCancelled, SettingsError
from covidseg_runtime.intensity import clip_and_scale_hounsfield
from covidseg_runtime.segment_settings import SegmentSettings
from covidseg_runtime.segmenter import Segmenter
from covidseg_runtime.volume import Volume, reorient_array, to_orientation
from covidseg_runtime.volume_files import read_volume

ORIENTATIONS = ["".join(letters) for axes in permutations(("LR", "AP", "IS")) for letters in product(*axes)]


def _phantom(hu: np.ndarray | None = None) -> Volume:
    return Volume(phantom_hu() if hu is None else hu, spl_affine(PHANTOM_SPACING_MM))


@pytest.fixture
def segmenter(tiny_bundle: Path) -> Segmenter:
    return Segmenter(load_bundle(tiny_bundle), PointwiseEngine(pointwise_logits))


def test_there_are_48_orientations() -> None:
    assert len(set(ORIENTATIONS)) == 48


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_every_axis_order_gives_the_same_labels_in_the_patient(segmenter: Segmenter, orientation: str) -> None:
    turned = to_orientation(_phantom(), orientation)
    stored = Volume(np.ascontiguousarray(turned.voxels), turned.affine)
    assert stored.orientation == orientation
    segmentation = segmenter.segment(stored)
    assert segmentation.labels.shape == stored.shape
    assert segmentation.labels.dtype == np.uint8
    found = reorient_array(segmentation.labels, orientation, "SPL")
    np.testing.assert_array_equal(found, phantom_labels())


def test_other_settings_share_the_engine_and_take_turns_at_it(tiny_bundle: Path) -> None:
    at_work, most = [], []

    def slow(tiles: np.ndarray) -> np.ndarray:
        at_work.append(1)
        most.append(len(at_work))
        time.sleep(0.01)
        at_work.pop()
        return pointwise_logits(tiles)

    first = Segmenter(load_bundle(tiny_bundle), PointwiseEngine(slow))
    second = first.with_settings(SegmentSettings(min_lesion_ml=5.0))
    tiles = np.zeros((1, 1, 16, 16, 16), np.float32)
    with ThreadPoolExecutor(3) as pool:
        kept = pool.submit(first.segment, _phantom())
        dropped = pool.submit(second.segment, _phantom())
        np.testing.assert_array_equal(pool.submit(first.predict, tiles).result(), pointwise_logits(tiles))
        assert (3 in kept.result().labels, 3 in dropped.result().labels) == (True, False)
    assert max(most) == 1


@pytest.mark.parametrize("orientation", ["SPL", "RAS", "LPS", "AIR"])
def test_a_network_that_knows_no_sides_gives_them_all_the_same(tiny_bundle: Path, orientation: str) -> None:
    """Background, lung, infection: the lungs are parted by their place, in patient space."""
    description = json.loads((tiny_bundle / "bundle.json").read_text())
    description["classes"] = ["background", "lung", "infection"]
    (tiny_bundle / "bundle.json").write_text(json.dumps(description))
    engine = PointwiseEngine(lambda tiles: pointwise_logits(tiles)[:, (0, 1, 3)])
    hu = phantom_hu()
    hu[phantom_labels() == 2] = hu[phantom_labels() == 1][0]
    turned = to_orientation(_phantom(hu), orientation)
    segmentation = Segmenter(load_bundle(tiny_bundle), engine).segment(turned)
    np.testing.assert_array_equal(reorient_array(segmentation.labels, orientation, "SPL"), phantom_labels())
    assert segmentation.measures.infection_volume_ml.right == 0


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_the_real_engines_give_the_labels_of_the_phantom(tiny_bundle: Path, engine: str) -> None:
    with Segmenter.open(str(tiny_bundle), engine=engine, device="cpu") as segmenter:
        segmentation = segmenter.segment(_phantom())
    np.testing.assert_array_equal(segmentation.labels, phantom_labels())


def test_the_probability_of_infection_comes_on_the_scan_s_own_grid(tiny_bundle: Path) -> None:
    bundle, engine = load_bundle(tiny_bundle), PointwiseEngine(pointwise_logits)
    scan = to_orientation(_phantom(), "RAS")
    plain = Segmenter(bundle, engine).segment(scan)
    kept = Segmenter(bundle, engine, SegmentSettings(keep_probability=True)).segment(scan)
    assert plain.infection_probability is None
    np.testing.assert_array_equal(kept.labels, plain.labels)
    probability = kept.infection_probability
    assert probability is not None
    assert (probability.dtype, probability.shape) == (np.uint8, scan.shape)
    # The truth by hand: softmax of the logits of each voxel, where no interpolation comes between the grids.
    voxels = to_orientation(scan, "SPL").voxels
    logits = pointwise_logits(clip_and_scale_hounsfield(voxels, bundle.preprocessing.scaling)[None, None])[0]
    expected = np.exp(logits[3]) / np.exp(logits).sum(axis=0)
    box = plain.box.slices
    found = reorient_array(probability, "RAS", "SPL")
    np.testing.assert_allclose(found[box] / 255, expected[box], atol=0.5 / 255 + 1e-4)
    assert found.sum() == found[box].sum()


def test_volumes_are_those_of_the_phantom(segmenter: Segmenter) -> None:
    measures = segmenter.segment(_phantom()).measures
    voxel_ml = 2.0 * 1.5 * 1.5 / 1000
    infection_ml = 6 * 7 * 7 * voxel_ml
    assert measures.infection_volume_ml.left == pytest.approx(infection_ml)
    assert measures.infection_volume_ml.right == 0
    assert measures.lung_volume_ml.left == pytest.approx(16 * 20 * 14 * voxel_ml)
    percent = 100 * infection_ml / ((16 + 20) * 20 * 14 * voxel_ml)
    assert measures.infection_percent.whole == pytest.approx(percent, abs=0.001)


def test_a_lesion_below_the_limit_becomes_lung(tiny_bundle: Path) -> None:
    settings = SegmentSettings(min_lesion_ml=2.0)  # the phantom's lesion has 1.3 mL
    engine = PointwiseEngine(pointwise_logits)
    segmentation = Segmenter(load_bundle(tiny_bundle), engine, settings).segment(_phantom())
    expected = phantom_labels()
    expected[expected == 3] = 1
    np.testing.assert_array_equal(segmentation.labels, expected)


def test_infection_apart_from_the_lungs_is_removed_with_a_warning(segmenter: Segmenter) -> None:
    hu = phantom_hu()
    hu[2:10, 30:36, 0:8] = -300  # 1.7 mL in a corner
    segmentation = segmenter.segment(_phantom(hu))
    np.testing.assert_array_equal(segmentation.labels, phantom_labels())
    assert any("1.7 mL" in warning and "apart from the lungs" in warning for warning in segmentation.warnings)


def test_a_finer_scan_is_labelled_on_its_own_grid(segmenter: Segmenter) -> None:
    fine = phantom_hu().repeat(2, axis=0).repeat(2, axis=1).repeat(2, axis=2)
    volume = Volume(fine, spl_affine((1.0, 0.75, 0.75)))
    labels = segmenter.segment(volume).labels
    expected = phantom_labels().repeat(2, axis=0).repeat(2, axis=1).repeat(2, axis=2)
    assert labels.shape == expected.shape
    # Interpolation moves borders by less than a voxel of the model; the inside is exact.
    np.testing.assert_array_equal(labels[20:24, 24:30, 58:62], expected[20:24, 24:30, 58:62])
    assert (labels == expected).mean() > 0.9


def test_progress_counts_every_tile(segmenter: Segmenter) -> None:
    seen: list[tuple[int, int]] = []
    segmenter.segment(_phantom(), lambda done, total: seen.append((done, total)))
    total = seen[-1][1]
    assert seen == [(done, total) for done in range(1, total + 1)]


def test_the_scan_is_not_changed(segmenter: Segmenter) -> None:
    volume = _phantom()
    segmenter.segment(volume)
    np.testing.assert_array_equal(volume.voxels, phantom_hu())


def test_steps_are_timed(segmenter: Segmenter) -> None:
    timings = segmenter.segment(_phantom()).timings_s
    assert list(timings) == [
        "check_scan",
        "lung_box",
        "to_model_grid",
        "network",
        "remove_detached",
        "remove_small_lesions",
        "measure",
    ]
    assert all(seconds >= 0 for seconds in timings.values())


def test_a_scan_without_lungs_is_warned_of(tiny_bundle: Path) -> None:
    in_air = np.full((20, 20, 20), -1000, np.int16)
    in_air[:, 5:15, 5:15] = 40
    sees_background = PointwiseEngine(lambda tiles: pointwise_logits(np.full_like(tiles, 40 / 100)))
    segmentation = Segmenter(load_bundle(tiny_bundle), sees_background).segment(_phantom(in_air))
    assert not segmentation.labels.any()
    warnings = " ".join(segmentation.warnings)
    assert "found no lung: is this a CT of the chest?" in warnings
    assert "No air-filled lungs were found" in warnings
    assert segmentation.measures.infection_percent.whole is None


def test_lungs_cut_by_the_field_of_view_are_warned_of_by_side(segmenter: Segmenter) -> None:
    cut = _phantom(np.ascontiguousarray(phantom_hu()[10:]))
    (warning,) = [w for w in segmenter.segment(cut).warnings if "touch the border" in w]
    assert "(feet)" in warning


def test_a_good_scan_has_no_warning_of_the_field_of_view(segmenter: Segmenter) -> None:
    assert not [w for w in segmenter.segment(_phantom()).warnings if "border" in w]


def test_thick_slices_are_warned_of(segmenter: Segmenter) -> None:
    thick = Volume(phantom_hu(), spl_affine((6.0, 1.5, 1.5)))
    assert any("6 mm apart" in warning for warning in segmenter.segment(thick).warnings)


def test_a_network_of_other_classes_is_refused(tiny_bundle: Path) -> None:
    engine = PointwiseEngine(lambda tiles: pointwise_logits(tiles)[:, :2])
    with pytest.raises(EngineError, match="2 classes, the bundle names 4"):
        Segmenter(load_bundle(tiny_bundle), engine).segment(_phantom())


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_a_limit_that_is_no_volume_is_refused(value: float) -> None:
    with pytest.raises(SettingsError, match="min_lesion_ml"):
        SegmentSettings(min_lesion_ml=value)


def test_eight_threads_on_one_segmenter_give_what_one_gives(tiny_bundle: Path, phantom_scan: Path) -> None:
    with Segmenter.open(str(tiny_bundle)) as segmenter:
        alone = segmenter.segment(phantom_scan).labels
        with ThreadPoolExecutor(8) as pool:
            together = list(pool.map(lambda _: segmenter.segment(phantom_scan).labels, range(24)))
    assert all(np.array_equal(labels, alone) for labels in together)


def test_an_event_cancels_after_the_tile_in_work(tiny_bundle: Path, phantom_scan: Path) -> None:
    cancel, done = threading.Event(), []

    def stop_at_the_third(tiles: int, total: int) -> None:
        done.append(tiles)
        if tiles == 3:
            cancel.set()

    with Segmenter.open(str(tiny_bundle)) as segmenter:
        with pytest.raises(SegmentationCancelled, match="cancelled after 3 of"):
            segmenter.segment(phantom_scan, stop_at_the_third, cancel=cancel)
        assert done == [1, 2, 3]
        assert segmenter.segment(phantom_scan).labels.any(), "it can be used on"


def test_tiles_reach_the_engine_in_its_batches_and_an_event_cancels_within_one(tiny_bundle: Path) -> None:
    sizes: list[int] = []

    def predict(tiles: np.ndarray) -> np.ndarray:
        sizes.append(len(tiles))
        return pointwise_logits(tiles)

    engine = PointwiseEngine(predict)
    engine.batch = 7
    segmenter = Segmenter(load_bundle(tiny_bundle), engine)
    segmentation = segmenter.segment(_phantom())
    np.testing.assert_array_equal(segmentation.labels, phantom_labels())
    assert (segmentation.tiles, sizes) == (60, [7] * 8 + [4])
    sizes.clear()
    cancel, done = threading.Event(), []

    def stop_at_the_ninth(tiles: int, total: int) -> None:
        done.append(tiles)
        if tiles == 9:
            cancel.set()

    with pytest.raises(SegmentationCancelled, match="cancelled after 9 of 60 tiles"):
        segmenter.segment(_phantom(), stop_at_the_ninth, cancel=cancel)
    assert (done, sizes) == (list(range(1, 10)), [7, 7])


def test_a_progress_callback_that_raises_reaches_the_caller_and_wedges_nothing(
    tiny_bundle: Path, phantom_scan: Path
) -> None:
    def broken(tiles: int, total: int) -> None:
        raise ZeroDivisionError

    with Segmenter.open(str(tiny_bundle)) as segmenter:
        for _ in range(3):
            with pytest.raises(ZeroDivisionError):
                segmenter.segment(phantom_scan, broken)
        assert segmenter.segment(phantom_scan).labels.any()


def test_a_path_a_volume_and_an_array_give_the_same(tiny_bundle: Path, phantom_scan: Path) -> None:
    volume = read_volume(phantom_scan)
    with Segmenter.open(str(tiny_bundle)) as segmenter:
        expected = segmenter.segment(volume).labels
        assert np.array_equal(segmenter.segment(phantom_scan).labels, expected)
        assert np.array_equal(segmenter.segment(volume.voxels, affine=volume.affine).labels, expected)
        with pytest.raises(SettingsError, match="without its affine"):
            segmenter.segment(volume.voxels)
        with pytest.raises(SettingsError, match="affine goes with an array"):
            segmenter.segment(phantom_scan, affine=volume.affine)


def test_a_path_of_grey_levels_is_read_with_the_window_of_the_settings(tiny_bundle: Path, tmp_path: Path) -> None:
    levels = np.rint((phantom_hu() + 1250) / 1500 * 255).astype(np.uint8)
    levels[0, 0, :20] = np.arange(219, 239)  # 38 HU and above; more grey levels than a label map has
    path = tmp_path / "grey.nii.gz"
    nibabel.save(nibabel.Nifti1Image(levels, spl_affine(PHANTOM_SPACING_MM)), path)
    with Segmenter.open(str(tiny_bundle), settings=SegmentSettings(window_hu=(-1250, 250))) as segmenter:
        segmentation = segmenter.segment(path)
    assert np.array_equal(segmentation.labels, phantom_labels())
    assert segmentation.warnings[0].startswith("The scan was given as grey levels of a window from -1250 to 250 HU")


def test_a_window_that_is_none_is_refused() -> None:
    with pytest.raises(SettingsError, match="250 to -1250 HU is no window"):
        SegmentSettings(window_hu=(250, -1250))


@pytest.mark.parametrize("quality", ["fast", "balanced", "best"])
def test_every_quality_labels_the_phantom(quality: str, tiny_bundle: Path, phantom_scan: Path) -> None:
    """The tiny network is pointwise, so steps and mirroring cannot change what it says; the tiles are more or fewer."""
    totals: list[int] = []
    with Segmenter.open(str(tiny_bundle), settings=SegmentSettings(quality=quality)) as segmenter:
        labels = segmenter.segment(phantom_scan, lambda done, total: totals.append(total)).labels
    # 28×36×44 voxels, tiles of 16: every 8 voxels 3·4·5 of them, every 16 voxels 2·3·3.
    assert totals[0] == {"fast": 18, "balanced": 60, "best": 60}[quality]
    with Segmenter.open(str(tiny_bundle)) as segmenter:
        assert np.array_equal(labels, segmenter.segment(phantom_scan).labels)


def test_an_unknown_quality_is_refused() -> None:
    with pytest.raises(SettingsError, match="quality 'superb' is unknown: expected one of fast, balanced, best"):
        SegmentSettings(quality="superb")
