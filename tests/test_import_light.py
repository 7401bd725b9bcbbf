"""The runtime and the command's help stay light: nothing heavy is imported before it is needed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parent.parent
SOURCES = os.pathsep.join(str(ROOT / part) for part in (".", "runtime", "export", "train"))

_BLOCK_TRAINING = """
import sys
for name in ("torch", "monai", "onnx", "onnxscript", "covidseg_train", "covidseg_export"):
    sys.modules[name] = None
"""


# The CI systems and settings in which the engines keep quiet by themselves.
TELEMETRY_SILENT_IN = ("CI", "TF_BUILD", "JENKINS_URL", "ORT_DISABLE_TELEMETRY", "ORT_RUNNING_UNIT_TESTS")


def _run(code: str, environment: Mapping[str, str] = os.environ) -> str:
    environment = {**environment, "PYTHONPATH": SOURCES}
    done = subprocess.run(  # noqa: S603 - our own interpreter and code
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_whole_runtime_imports_without_torch_monai_and_onnx() -> None:
    modules = [
        ".".join(path.relative_to(ROOT / "runtime").with_suffix("").parts).removesuffix(".__init__")
        for path in sorted((ROOT / "runtime" / "covidseg_runtime").rglob("*.py"))
    ]
    assert "covidseg_runtime.segmenter" in modules
    imports = "\n".join(f"import {module}" for module in modules)
    public = "import covidseg\nfor name in covidseg.__all__: getattr(covidseg, name)"
    _run(f"{_BLOCK_TRAINING}\n{imports}\n{public}")


def test_importing_the_packages_imports_neither_numpy_nor_an_engine() -> None:
    _run(
        "import covidseg, covidseg_runtime, sys\n"
        "heavy = {'numpy', 'nibabel', 'scipy', 'openvino', 'onnxruntime', 'PIL', 'click'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )


def test_importing_the_segmenter_loads_no_engine() -> None:
    _run(
        # As in the base install; nibabel imports pydicom, which imports Pillow, wherever the extra `dicom` is there.
        "import sys; sys.modules['pydicom'] = None\n"
        "import covidseg_runtime.segmenter\n"
        "heavy = {'openvino', 'onnxruntime', 'PIL', 'torch'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )


def test_help_imports_neither_numpy_nor_an_engine() -> None:
    for arguments in (["--help"], ["segment", "--help"], ["train", "--help"], ["check", "--help"]):
        _run(
            "import sys\n"
            "from covidseg.cli import main\n"
            f"main({arguments!r}, standalone_mode=False)\n"
            "heavy = {'numpy', 'nibabel', 'scipy', 'openvino', 'onnxruntime', 'rich', 'ray', 'torch'}\n"
            "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        )


def test_segmenting_opens_no_connection_and_leaves_nothing_in_the_home_folder(tmp_path: Path) -> None:
    """Importing openvino reports to Google Analytics and writes ~/intel, onnxruntime to Microsoft and ~/.cache."""
    home = tmp_path / "home"
    home.mkdir()
    code = (
        "import sys\n"
        "def no_network(event, arguments):\n"
        "    if event in ('socket.connect', 'socket.getaddrinfo', 'urllib.Request', 'os.fork', 'subprocess.Popen'):\n"
        "        raise RuntimeError(f'{event} {arguments}')\n"
        "sys.addaudithook(no_network)\n"
        "from pathlib import Path\n"
        "import covidseg\n"
        "covidseg.available_engines()\n"
        f"scan = covidseg.read_volume(Path({str(ROOT / 'tests/data/lidc_0001_crop_ct.nii.gz')!r}))\n"
        "for engine in ('openvino', 'onnxruntime'):\n"
        "    with covidseg.Segmenter.open(engine=engine) as segmenter:\n"
        "        segmenter.segment(scan)\n"
        "assert 'openvino_telemetry' not in sys.modules\n"
        "assert 'ORT_DISABLE_TELEMETRY' not in __import__('os').environ\n"
    )
    environment = {name: value for name, value in os.environ.items() if name not in TELEMETRY_SILENT_IN}
    _run(code, {**environment, "HOME": str(home)})
    assert list(home.iterdir()) == []


def test_importing_prints_nothing_and_warns_of_nothing() -> None:
    code = "import warnings; warnings.simplefilter('error'); import covidseg.cli, covidseg_runtime"
    assert not _run(code)
