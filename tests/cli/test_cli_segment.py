"""`covidseg segment`: whole results or none, JSON alone on stdout, documented exit codes."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import nibabel
import numpy as np
import pytest
from click.testing import CliRunner, Result
from phantom import PHANTOM_SPACING_MM, phantom_hu, phantom_labels, spl_affine

from covidseg.cli import main
from covidseg.cli.segment import _range_of

CROP = Path(__file__).parents[1] / "data" / "lidc_0001_crop_ct.nii.gz"


def _segment(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["segment", *map(str, arguments)])


def _labels(path: Path) -> np.ndarray:
    return np.asarray(nibabel.load(path).dataobj)


def test_a_scan_becomes_a_label_map_and_a_report(here: Path, phantom_scan: Path, tiny_bundle: Path) -> None:
    result = _segment(phantom_scan, "--model", tiny_bundle, "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in here.iterdir()) == [
        "phantom_covidseg.json",
        "phantom_covidseg.nii.gz",
    ]
    np.testing.assert_array_equal(_labels(here / "phantom_covidseg.nii.gz"), phantom_labels())
    report = json.loads((here / "phantom_covidseg.json").read_text())
    assert report["notice"] == "Research use only. Not a medical device."
    assert report["dice"] is None


def test_people_read_the_result_on_stdout_and_the_cost_on_stderr(
    here: Path, phantom_scan: Path, tiny_bundle: Path
) -> None:
    result = _segment(phantom_scan, "--model", tiny_bundle, "--device", "cpu")
    assert result.stdout.splitlines() == [
        "lung volume        45 mL",
        "infection volume   1.3 mL",
        "infected lung      2.9 %",
        "written            phantom_covidseg.nii.gz",
        "written            phantom_covidseg.json",
        "Research use only. Not a medical device.",
    ]
    assert re.search(
        r"^tiny 1\.2\.3 on openvino f32 \(cpu, threads \d+, batch 1\), "
        r"quality balanced \(step 0\.5, tiles 16x16x16\)$",
        result.stderr,
        re.MULTILINE,
    )
    assert "segmented in" in result.stderr
    assert "peak memory" in result.stderr


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_json_is_alone_on_stdout(here: Path, phantom_scan: Path, tiny_bundle: Path, engine: str) -> None:
    result = _segment(phantom_scan, "--model", tiny_bundle, "--engine", engine, "--device", "cpu", "--json")
    report = json.loads(result.stdout)
    assert report["engine"]["name"] == engine
    assert report == json.loads((here / "phantom_covidseg.json").read_text())


def test_what_was_chosen_is_printed_and_stands_in_the_report(here: Path, phantom_scan: Path, tiny_bundle: Path) -> None:
    result = _segment(
        phantom_scan, "--model", tiny_bundle, "--deterministic", "--quality", "fast", "--threads", 2, "--json"
    )
    assert result.stderr.splitlines()[0] == (
        "tiny 1.2.3 on onnxruntime f32 (CPUExecutionProvider, cpu, threads 2, batch 1), "
        "quality fast (step 1, tiles 16x16x16)"
    )
    report = json.loads(result.stdout)
    assert report["engine"] == {
        "name": "onnxruntime",
        "provider": "CPUExecutionProvider",
        "device": "cpu",
        "precision": "f32",
        "threads": 2,
        "batch": 1,
        "quality": "fast",
        "step": 1.0,
        "tile_shape": [16, 16, 16],
        "tiles": 2 * 3 * 3,  # 28x36x44 voxels, a tile every 16
    }
    assert report["settings"]["quality"] == "fast"
    np.testing.assert_array_equal(_labels(here / "phantom_covidseg.nii.gz"), phantom_labels())


def test_deterministic_labels_have_the_same_bits_with_any_number_of_threads(here: Path) -> None:
    """The default model on a piece of a real scan, of one tile."""
    crop = nibabel.load(CROP).slicer[20:84, 50:114, :]
    nibabel.save(crop, here / "piece.nii.gz")
    for run, threads in enumerate((1, 2, 8)):
        result = _segment("piece.nii.gz", "-o", f"{run}.nii.gz", "--deterministic", "--threads", threads)
        assert result.exit_code == 0, result.output
    assert len({(here / f"{run}.nii.gz").read_bytes() for run in range(3)}) == 1
    assert len(np.unique(_labels(here / "0.nii.gz"))) > 1


def test_truth_and_preview(here: Path, phantom_scan: Path, phantom_truth: Path, tiny_bundle: Path) -> None:
    result = _segment(phantom_scan, "--model", tiny_bundle, "--truth", phantom_truth, "--preview", "look.png")
    assert result.exit_code == 0, result.output
    assert "DSC infection      1.0000" in result.stdout
    assert "DSC left lung      1.0000" in result.stdout
    assert (here / "look.png").read_bytes().startswith(b"\x89PNG")


def test_the_probability_is_written_as_values_from_0_to_1(here: Path, phantom_scan: Path, tiny_bundle: Path) -> None:
    result = _segment(phantom_scan, "--model", tiny_bundle, "-o", "labels.nii.gz", "--probability", "p.nii.gz")
    assert result.exit_code == 0, result.output
    assert "written            p.nii.gz" in result.stdout
    image, labels = nibabel.load(here / "p.nii.gz"), nibabel.load(here / "labels.nii.gz")
    probability = image.get_fdata()
    assert image.get_data_dtype() == np.uint8
    assert np.array_equal(image.affine, labels.affine)
    assert 0 <= probability.min() < 0.5 < probability.max() <= 1
    assert probability[np.asarray(labels.dataobj) == 3].min() > 0.3


def test_an_infection_mask_is_a_truth_for_infection_alone(here: Path, phantom_scan: Path, tiny_bundle: Path) -> None:
    mask = (phantom_labels() == 3).astype(np.uint8)
    nibabel.save(nibabel.Nifti1Image(mask, spl_affine(PHANTOM_SPACING_MM)), here / "mask.nii.gz")
    result = _segment(phantom_scan, "--model", tiny_bundle, "--truth", "mask.nii.gz", "--json")
    assert json.loads(result.stdout)["dice"] == {"infection": 1.0}


WINDOW = (-1250, 250)


def _publish_grey_levels(path: Path) -> Path:
    """The phantom as [-1250, 250] HU scaled to 0-255, with more grey levels than a label map has."""
    low, high = WINDOW
    levels = np.rint((phantom_hu() - low) / (high - low) * 255).astype(np.uint8)
    levels[0, 0, :20] = np.arange(219, 239)  # 38 HU and above: soft tissue
    nibabel.save(nibabel.Nifti1Image(levels, spl_affine(PHANTOM_SPACING_MM)), path)
    return path


@pytest.mark.parametrize("option", [["--window=-1250,250"], ["--window", "-1250,250"]])
def test_a_scan_of_grey_levels_is_segmented_with_its_window_and_a_warning(
    here: Path, tiny_bundle: Path, option: list[str]
) -> None:
    scan = _publish_grey_levels(here / "grey.nii.gz")
    result = _segment(scan, "--model", tiny_bundle, *option)
    assert result.exit_code == 0, result.output
    np.testing.assert_array_equal(_labels(here / "grey_covidseg.nii.gz"), phantom_labels())
    warning = (
        "The scan was given as grey levels of a window from -1250 to 250 HU: what lay outside the window is lost, "
        "HU are approximate, volumes and labels are less reliable."
    )
    assert f"Warning: {warning}" in result.stderr
    report = json.loads((here / "grey_covidseg.json").read_text())
    assert report["warnings"][0] == warning
    assert report["scan"]["window_hu"] == [-1250, 250]
    assert report["settings"]["window_hu"] == [-1250, 250]


@pytest.mark.parametrize("value", ['"-1250,250"', "[-1250, 250]"])
def test_the_window_may_stand_in_the_configuration_file(here: Path, tiny_bundle: Path, value: str) -> None:
    (here / "covidseg.toml").write_text(f"[segment]\nwindow = {value}\n")
    result = _segment(_publish_grey_levels(here / "grey.nii.gz"), "--model", tiny_bundle, "--json")
    assert json.loads(result.stdout)["scan"]["window_hu"] == [-1250, 250]


def test_the_window_may_stand_in_the_environment(
    here: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COVIDSEG_SEGMENT_WINDOW", "-1250,250")
    result = _segment(_publish_grey_levels(here / "grey.nii.gz"), "--model", tiny_bundle, "--json")
    assert json.loads(result.stdout)["scan"]["window_hu"] == [-1250, 250]


def test_a_scan_of_grey_levels_without_its_window_is_exit_3_and_told_the_way(here: Path, tiny_bundle: Path) -> None:
    result = _segment(_publish_grey_levels(here / "grey.nii.gz"), "--model", tiny_bundle)
    assert result.exit_code == 3
    assert "give it with --window LOW,HIGH" in result.stderr
    assert [path.name for path in here.iterdir()] == ["grey.nii.gz"]


def test_a_window_for_a_scan_in_hounsfield_units_is_exit_3_and_nothing_is_written(
    here: Path, phantom_scan: Path, tiny_bundle: Path
) -> None:
    result = _segment(phantom_scan, "--model", tiny_bundle, "--window=-1250,250")
    assert result.exit_code == 3
    assert len(result.stderr.splitlines()) == 1
    assert "values from -850 to 40; with a window, grey levels from 0 to 255 are expected" in result.stderr
    assert not list(here.iterdir())


def test_a_damaged_scan_is_exit_3_and_nothing_is_written(here: Path, tiny_bundle: Path) -> None:
    scan = here / "broken.nii.gz"
    scan.write_bytes(b"not a scan")
    result = _segment(scan, "--model", tiny_bundle)
    assert result.exit_code == 3
    assert result.stderr.startswith("Error: ")
    assert len(result.stderr.splitlines()) == 1
    assert [path.name for path in here.iterdir()] == ["broken.nii.gz"]


@pytest.mark.parametrize(("high_ml", "told"), [(12.0, " (as 80% of 8 held-out cases: 4.0 to 12.0 mL)"), (0.0, "")])
def test_a_range_is_printed_of_what_was_found_and_not_of_nothing(high_ml: float, told: str) -> None:
    found = {"low_ml": high_ml / 3, "high_ml": high_ml, "share": 0.8, "cases": 8}
    assert _range_of({"uncertainty": {"infection_volume_ml": found}}) == told


@pytest.mark.parametrize("name", ["overlay.png", "slice.dcm", "notes.txt"])
def test_a_file_of_another_kind_is_exit_3_and_says_what_is_read(here: Path, name: str) -> None:
    (here / name).write_bytes(b"no scan")
    result = _segment(name)
    assert result.exit_code == 3
    assert result.stderr.startswith(f"Error: {name} is no scan that is read: give NIfTI (.nii, .nii.gz), DICOM (")
    assert len(result.stderr.splitlines()) == 1


def test_a_truth_of_another_scan_is_exit_3_and_nothing_is_written(
    here: Path, phantom_scan: Path, tiny_bundle: Path
) -> None:
    affine = spl_affine(PHANTOM_SPACING_MM)
    affine[0, 3] += 5
    nibabel.save(nibabel.Nifti1Image(phantom_labels(), affine), here / "truth.nii.gz")
    result = _segment(phantom_scan, "--model", tiny_bundle, "--truth", "truth.nii.gz")
    assert result.exit_code == 3
    assert "5.00 mm apart" in result.stderr
    assert [path.name for path in here.iterdir()] == ["truth.nii.gz"]


def test_an_altered_model_is_exit_5_and_nothing_is_written(here: Path, phantom_scan: Path, tiny_bundle: Path) -> None:
    with (tiny_bundle / "model.onnx").open("ab") as file:
        file.write(b"\0")
    result = _segment(phantom_scan, "--model", tiny_bundle)
    assert result.exit_code == 5
    assert "was altered" in result.stderr
    assert not list(here.iterdir())


def test_a_missing_model_is_exit_5(here: Path, phantom_scan: Path) -> None:
    result = _segment(phantom_scan, "--model", "no-such-model")
    assert result.exit_code == 5
    assert "no model bundle 'no-such-model'" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "missing/out.nii.gz"], "folder of missing/out.nii.gz does not exist"),
        (["--preview", "missing/p.png"], "folder of missing/p.png does not exist"),
        (["-o", "out.mha"], "must end in .nii.gz or .nii"),
        (["--preview", "p.jpg"], "the picture p.jpg must end in .png"),
        (["--probability", "p.png"], "must end in .nii.gz or .nii"),
        (["-o", "same.nii", "--report", "same.nii"], "another result"),
        (["--engine", "torch"], "torch"),
        (["--device", "gpu"], "device 'gpu' is unknown"),
        (["--engine", "openvino", "--device", "cuda:0"], "does not run on cuda:0"),
        (["--min-lesion-ml", "-1"], "min-lesion-ml"),
        (["--window=250,-1250"], "250 to -1250 HU is no window: LOW below HIGH"),
        (["--window=-4000,250"], "both from -3000 to 5000 HU"),
        (["--window=-1250"], "'-1250' is no window: two numbers LOW,HIGH in HU are expected"),
        (["--window=lung"], "'lung' is no window"),
        (["--precision", "f64"], "f64"),
        (["--quality", "perfect"], "perfect"),
        (["--threads", "0"], "threads"),
        (["--engine", "onnxruntime", "--precision", "bf16"], "does not compute in bf16"),
        (["--deterministic", "--engine", "openvino"], "--deterministic computes with --engine onnxruntime, not with"),
        (["--deterministic", "--precision", "bf16"], "--deterministic computes with --precision f32, not with"),
        (["--deterministic", "--device", "cuda:0"], "--deterministic computes with --device cpu, not with"),
        (["-o", "."], ". must end in .nii.gz or .nii"),
        (["--num-parts", "2"], "are for a folder of scans"),
        (["--overwrite"], "are for a folder of scans"),
        (["--unknown"], "unknown"),
    ],
)
def test_wrong_usage_is_exit_2_and_nothing_is_written(
    here: Path, phantom_scan: Path, tiny_bundle: Path, arguments: list[str], message: str
) -> None:
    result = _segment(phantom_scan, "--model", tiny_bundle, *arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
    assert not list(here.iterdir())


def test_a_scan_that_does_not_exist_is_exit_2(here: Path) -> None:
    assert _segment("missing.nii.gz").exit_code == 2


@pytest.mark.parametrize("option", ["-o", "--report", "--preview", "--probability"])
def test_the_scan_is_never_replaced(here: Path, phantom_scan: Path, tiny_bundle: Path, option: str) -> None:
    before = phantom_scan.read_bytes()
    link = here / "link.nii.gz"
    link.symlink_to(phantom_scan)
    for target in (phantom_scan, link):
        result = _segment(phantom_scan, "--model", tiny_bundle, option, target)
        assert result.exit_code == 2
        assert "would replace the scan" in result.stderr
    assert phantom_scan.read_bytes() == before


def test_an_interruption_is_exit_130_and_one_line(
    here: Path, phantom_scan: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("covidseg_runtime.segmenter.find_lung_box", interrupt)
    result = _segment(phantom_scan, "--model", tiny_bundle)
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1] == "Interrupted."
    assert not list(here.iterdir())


def test_sigterm_is_exit_130_too(
    here: Path, phantom_scan: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("covidseg_runtime.segmenter.find_lung_box", lambda *_: signal.raise_signal(signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    result = _segment(phantom_scan, "--model", tiny_bundle)
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1] == "Interrupted."
    assert not list(here.iterdir())
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_failure_while_drawing_leaves_nothing(
    here: Path, phantom_scan: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("covidseg_runtime.preview.render_preview", fail)
    result = _segment(phantom_scan, "--model", tiny_bundle, "--preview", "look.png")
    assert result.exit_code == 1
    assert "Error: [Errno 28] No space left on device" in result.stderr
    assert not list(here.iterdir())


def test_more_memory_than_allowed_ends_the_run_without_a_file(
    tiny_bundle: Path, phantom_scan: Path, tmp_path: Path
) -> None:
    output = tmp_path / "labels.nii.gz"
    arguments = ["segment", str(phantom_scan), "--model", str(tiny_bundle), "-o", str(output), "--max-memory"]
    refused = CliRunner().invoke(main, [*arguments, "10"])
    assert refused.exit_code == 2
    assert "MiB, more than --max-memory 10" in refused.stderr
    assert not output.exists()
    assert CliRunner().invoke(main, [*arguments, "100000"]).exit_code == 0
