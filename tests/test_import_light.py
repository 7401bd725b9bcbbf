"""The runtime and the command's help stay light: nothing heavy is imported before it is needed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
SOURCES = os.pathsep.join(str(ROOT / part) for part in (".", "runtime", "export", "train"))

_BLOCK_TRAINING = """
import sys
for name in ("torch", "monai", "onnx", "onnxscript", "covidseg_train", "covidseg_export"):
    sys.modules[name] = None
"""


def _run(code: str) -> str:
    environment = {**os.environ, "PYTHONPATH": SOURCES}
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
        "import covidseg_runtime.segmenter, sys\n"
        "heavy = {'openvino', 'onnxruntime', 'PIL', 'torch'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )


def test_help_imports_neither_numpy_nor_an_engine() -> None:
    for arguments in (["--help"], ["segment", "--help"], ["train", "--help"], ["check", "--help"]):
        _run(
            "import sys\n"
            "from covidseg.cli import main\n"
            f"main({arguments!r}, standalone_mode=False)\n"
            "heavy = {'numpy', 'nibabel', 'scipy', 'openvino', 'onnxruntime', 'rich', 'torch'}\n"
            "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        )


def test_importing_prints_nothing_and_warns_of_nothing() -> None:
    code = "import warnings; warnings.simplefilter('error'); import covidseg.cli, covidseg_runtime"
    assert not _run(code)
