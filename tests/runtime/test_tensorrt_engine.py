"""The engine opens what was built for this machine, and says in a sentence what is missing. Running needs a GPU."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tensorrt_harness import GPU, importable_tensorrt

from covidseg_runtime.engines.plan_cache import PlanKey, TensorRtIdentity, store_plan
from covidseg_runtime.engines.tensorrt_engine import (
    TensorRtEngine,
    deserialise,
    gpu_identity,
    import_tensorrt,
    refuse_old,
)
from covidseg_runtime.errors import EngineError

INSTALL = r"pip install --extra-index-url https://pypi\.nvidia\.com 'covidseg\[tensorrt\]'.*NVIDIA's own package index"


@pytest.fixture
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PlanKey:
    monkeypatch.setenv("COVIDSEG_PLAN_CACHE", str(tmp_path / "plans"))
    return PlanKey("ab" * 32, TensorRtIdentity("tensorrt", "11.4.0.106"), GPU, (16, 16, 16), (1, 2), {})


def test_without_tensorrt_the_line_that_installs_it_is_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(EngineError, match=f"TensorRT cannot be loaded.*{INSTALL}"):
        TensorRtEngine(tmp_path / "model.onnx")


def test_without_cuda_python_the_line_that_installs_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with pytest.raises(EngineError, match=f"cuda-python cannot be loaded.*{INSTALL}"):
        gpu_identity(0)


def test_a_gpu_that_is_not_there_is_one_sentence() -> None:
    """Which one depends on the machine: no cuda-python, no driver, or fewer GPUs than a thousand."""
    with pytest.raises(EngineError, match="cuda-python cannot be loaded|no NVIDIA GPU|there is no GPU cuda:999"):
        gpu_identity(999)


def test_tensorrt_is_preferred_and_tensorrt_rtx_accepted() -> None:
    with importable_tensorrt() as package, importable_tensorrt("tensorrt_rtx"):
        both = import_tensorrt()
        assert both.module is package
        assert both.identity == TensorRtIdentity("tensorrt", package.__version__)
    with importable_tensorrt("tensorrt_rtx"):
        assert import_tensorrt().identity.flavour == "tensorrt_rtx"
    assert not {"tensorrt", "tensorrt_rtx"} & set(sys.modules)


@pytest.mark.parametrize("version", ["8.6.1", "10.11.0.33", "9.12"])
def test_a_tensorrt_with_weakly_typed_networks_is_refused(version: str) -> None:
    with pytest.raises(EngineError, match=f"tensorrt {version} is too old: 10.12 or later.*{INSTALL}"):
        refuse_old(TensorRtIdentity("tensorrt", version))


@pytest.mark.parametrize(
    ("flavour", "version"), [("tensorrt", "10.12.0.36"), ("tensorrt", "11.0"), ("tensorrt_rtx", "1.7.1")]
)
def test_from_10_12_on_every_tensorrt_is_taken(flavour: str, version: str) -> None:
    refuse_old(TensorRtIdentity(flavour, version))


def test_an_altered_plan_never_reaches_tensorrt(key: PlanKey) -> None:
    stored = store_plan(b"a plan", key, "f32")
    stored.path.write_bytes(b"a worm")
    with importable_tensorrt(), pytest.raises(EngineError, match="its sha256 differs"):
        deserialise(import_tensorrt(), stored)


@pytest.mark.parametrize("flags", [{}, {"version_compatible": True}])
def test_what_tensorrt_itself_refuses_is_one_sentence(key: PlanKey, flags: dict[str, bool]) -> None:
    stored = store_plan(b"no plan at all", replace(key, flags=flags), "f32")
    with importable_tensorrt(), pytest.raises(EngineError) as refusal:
        deserialise(import_tensorrt(), stored)
    message = str(refusal.value)
    assert message.startswith(f"TensorRT cannot open its plan {stored.path} (")
    assert message.endswith("build it again: covidseg export MODEL --trt")
    assert "no reason" not in message
    assert "\n" not in message


def test_an_engine_that_cannot_be_opened_says_why_in_one_sentence(key: PlanKey, tiny_bundle: Path) -> None:
    """On a machine with a GPU the missing plan is what is said."""
    with importable_tensorrt(), pytest.raises(EngineError) as refusal:
        TensorRtEngine(tiny_bundle / "model.onnx")
    assert "\n" not in str(refusal.value)


def test_the_engine_s_module_imports_neither_tensorrt_nor_cuda() -> None:
    code = (
        "import sys\n"
        "import covidseg_runtime.engines.tensorrt_engine\n"
        "assert not {'tensorrt', 'tensorrt_rtx', 'cuda', 'torch', 'onnx'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
