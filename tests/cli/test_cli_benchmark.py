"""`covidseg benchmark`: a row for everything, files whole or none, documented exit codes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
from click.testing import CliRunner, Result
from phantom import PHANTOM_SPACING_MM, phantom_labels, spl_affine, tiny_description, tiny_model_proto

from covidseg.cli import main


def _benchmark(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["benchmark", "--repeats", "1", "--device", "cpu", *map(str, arguments)])


def test_people_see_a_table_with_a_row_for_what_cannot_run(
    here: Path, phantom_scan: Path, phantom_truth: Path, tiny_bundle: Path
) -> None:
    arguments = ("--model", tiny_bundle, "--scan", phantom_scan, "--truth", phantom_truth, "--engine", "onnxruntime")
    result = _benchmark(*arguments, "--threads", 1, "-o", "new/folder")
    assert result.exit_code == 0, result.output
    rows = {tuple(line.split()[:3]): line.split()[3:] for line in result.stdout.splitlines()[2:]}
    measured = rows["onnxruntime", "f32", "cpu"]
    assert measured[-3:-1] == ["1.0000", "1.0000"]
    assert len(measured) == 8
    assert all(float(number) >= 0 for number in measured)
    assert rows["onnxruntime", "f16", "cpu"] == ["-"] * 8
    assert "onnxruntime f16 on cpu: bundle 'tiny' has no ONNX model of precision fp16" in result.stdout
    assert "the reference is onnxruntime f32 on cpu" in result.stdout
    assert result.stdout.splitlines()[-1] == "Research use only. Not a medical device."
    assert "1 of 3: onnxruntime f32 on cpu" in result.stderr
    assert sorted(path.name for path in (here / "new" / "folder").iterdir()) == ["benchmark.json", "benchmark.png"]
    assert (here / "new" / "folder" / "benchmark.png").read_bytes().startswith(b"\x89PNG")


def test_json_is_alone_on_stdout_and_without_truth_its_dsc_is_null(
    here: Path, phantom_scan: Path, tiny_bundle: Path
) -> None:
    result = _benchmark(
        "--model", tiny_bundle, "--scan", phantom_scan, "--precision", "f32", "--json", "--engine", "openvino"
    )
    report = json.loads(result.stdout)
    assert report == json.loads((here / "benchmark.json").read_text())
    (row,) = report["rows"]
    assert (row["engine"], row["dsc_reference"], row["dsc_truth"]) == ("openvino", 1.0, None)
    assert report["scan"]["file"] == "phantom.nii.gz"
    assert report["notice"] == "Research use only. Not a medical device."


def test_without_any_measured_row_it_is_exit_2_with_the_reasons_and_nothing_is_written(
    here: Path, phantom_scan: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first row, the reference, lacks its package: its process finds a broken one before the real one."""
    folder = here.parent / "broken"
    folder.mkdir()
    for engine in ("openvino", "onnxruntime"):
        (folder / f"{engine}.py").write_text("raise ImportError('broken')")
        monkeypatch.delitem(sys.modules, engine, raising=False)
    monkeypatch.syspath_prepend(folder)
    result = _benchmark("--model", tiny_bundle, "--scan", phantom_scan, "--engine", "openvino", "--precision", "f32")
    assert result.exit_code == 2
    assert "openvino f32 on cpu: OpenVINO cannot be loaded (broken)" in result.stdout
    assert "Error: no row could be measured" in result.stderr
    assert not list(here.iterdir())


def test_the_same_network_in_torch_with_monai_is_a_row(here: Path, phantom_scan: Path, tmp_path: Path) -> None:
    """Its untrained weights label nonsense, which is shown beside the engines' result."""
    pytest.importorskip("monai")
    bundle = _bundle_with_torch_weights(tmp_path / "both")
    arguments = ("--model", bundle, "--scan", phantom_scan, "--engine", "monai", "--precision", "f32", "--threads", 1)
    result = _benchmark(*arguments, "--json")
    assert result.exit_code == 0, result.output
    reference, peer = json.loads(result.stdout)["rows"]
    assert (reference["engine"], reference["dsc_reference"]) == ("openvino", 1.0)
    assert (peer["engine"], peer["device"], peer["problem"]) == ("monai", "cpu", None)
    assert peer["dsc_reference"] < 0.9
    assert peer["s_per_scan"] > 0
    assert peer["installed_mb"] > 50


def test_without_torch_the_peer_has_its_row_and_its_reason(
    here: Path, phantom_scan: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = here.parent / "broken"
    folder.mkdir()
    (folder / "torch.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')")
    monkeypatch.syspath_prepend(folder)
    result = _benchmark("--model", tiny_bundle, "--scan", phantom_scan, "--engine", "monai", "--precision", "f32")
    assert result.exit_code == 0, result.output
    assert (
        "monai f32 on cpu: torch + MONAI needs torch, which is not installed: pip install 'covidseg[export]'"
        in result.stdout
    )


def test_a_scan_has_to_be_given(here: Path, tiny_bundle: Path) -> None:
    result = _benchmark("--model", tiny_bundle)
    assert result.exit_code == 2
    assert "give the chest CT that every row has to segment: --scan CT.nii.gz" in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--engine", "torch"], "engine 'torch' is unknown"),
        (["--precision", "f8"], "precision 'f8' is unknown"),
        (["--device", "gpu"], "device 'gpu' is unknown"),
        (["--repeats", "0"], "repeats"),
        (["--threads", "0"], "threads"),
        (["-o", "file"], "file"),
    ],
)
def test_wrong_usage_is_exit_2_and_nothing_is_written(
    here: Path, phantom_scan: Path, tiny_bundle: Path, arguments: list[str], message: str
) -> None:
    (here / "file").touch()
    result = _benchmark("--model", tiny_bundle, "--scan", phantom_scan, *arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
    assert [path.name for path in here.iterdir()] == ["file"]


def test_a_truth_of_another_scan_is_exit_3_before_anything_is_measured(
    here: Path, phantom_scan: Path, tiny_bundle: Path
) -> None:
    affine = spl_affine(PHANTOM_SPACING_MM)
    affine[0, 3] += 5
    nibabel.save(nibabel.Nifti1Image(phantom_labels(), affine), here.parent / "other.nii.gz")
    result = _benchmark("--model", tiny_bundle, "--scan", phantom_scan, "--truth", here.parent / "other.nii.gz")
    assert result.exit_code == 3
    assert "5.00 mm apart" in result.stderr
    assert not list(here.iterdir())


def test_an_altered_model_is_exit_5(here: Path, phantom_scan: Path, tiny_bundle: Path) -> None:
    with (tiny_bundle / "model.onnx").open("ab") as file:
        file.write(b"\0")
    assert _benchmark("--model", tiny_bundle, "--scan", phantom_scan).exit_code == 5


def _bundle_with_torch_weights(folder: Path) -> Path:
    """The tiny network's graph, which also holds the tensors of an untrained U-Net that the card describes."""
    import onnx
    import torch

    from covidseg_train.unet import UNet3d, UNetSpec

    torch.manual_seed(3)
    spec = UNetSpec(classes=4, widths=(4, 4), strides=((2, 2, 2),), supervised_levels=1)
    proto = tiny_model_proto()
    proto.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.ascontiguousarray(value.numpy()), name)
        for name, value in UNet3d(spec).state_dict().items()
    )
    model = proto.SerializeToString()
    card = {"architecture": "UNet3d", "widths": spec.widths, "strides": spec.strides}
    folder.mkdir()
    (folder / "model.onnx").write_bytes(model)
    (folder / "bundle.json").write_text(json.dumps({**tiny_description(model), "network": card}), encoding="utf-8")
    return folder
