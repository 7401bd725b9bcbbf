"""A plan is found only by what it was built for, and opened only as it was built."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from covidseg_runtime.engines.plan_cache import (
    GpuIdentity,
    PlanKey,
    TensorRtIdentity,
    find_plan,
    is_built,
    lock_plan,
    make_plan_folder,
    plan_folder,
    plan_path,
    read_plan,
    store_plan,
)
from covidseg_runtime.errors import EngineError, OutputError

TENSORRT = TensorRtIdentity("tensorrt", "11.4.0.106")
GPU = GpuIdentity("NVIDIA L4", "8.9", "13.0")
FLAGS = {"tf32": False, "version_compatible": False, "hardware_compatibility": "none", "optimization_level": 3}
KEY = PlanKey("ab" * 32, TENSORRT, GPU, (96, 160, 160), (2, 4), FLAGS)
PLAN = b"stands for machine code"
HOW = "covidseg export MODEL --trt"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COVIDSEG_PLAN_CACHE", str(tmp_path / "plans"))
    return tmp_path / "plans"


def find(tensorrt=TENSORRT, gpu=GPU, model_sha256=KEY.model_sha256):
    return find_plan("model.onnx", model_sha256, tensorrt, gpu)


@pytest.mark.parametrize(
    "other",
    [
        replace(KEY, model_sha256="cd" * 32),
        replace(KEY, tensorrt=TensorRtIdentity("tensorrt_rtx", "11.4.0.106")),
        replace(KEY, tensorrt=TensorRtIdentity("tensorrt", "11.4.0.107")),
        replace(KEY, gpu=replace(GPU, name="NVIDIA L40")),
        replace(KEY, gpu=replace(GPU, compute_capability="9.0")),
        replace(KEY, gpu=replace(GPU, driver="13.1")),
        replace(KEY, tile_shape=(96, 160, 128)),
        replace(KEY, batch=(1, 4)),
        replace(KEY, batch=(2, 8)),
        *(replace(KEY, flags={**FLAGS, name: "another"}) for name in FLAGS),
    ],
)
def test_another_value_of_anything_is_another_plan(other: PlanKey) -> None:
    assert other.digest != KEY.digest
    assert plan_path(other) != plan_path(KEY)


def test_the_key_does_not_hang_on_the_order_of_flags() -> None:
    assert replace(KEY, flags=dict(reversed(FLAGS.items()))).digest == KEY.digest


def test_plans_lie_in_the_user_s_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("COVIDSEG_PLAN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert plan_folder() == tmp_path / "covidseg" / "plans"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/anna")
    assert plan_folder() == Path("/home/anna/.cache/covidseg/plans")


def test_a_stored_plan_is_found_and_read_back(folder: Path) -> None:
    assert not is_built(KEY)
    store_plan(PLAN, KEY, "f16")
    assert is_built(KEY)
    found = find()
    assert (found.path, found.precision, found.key) == (plan_path(KEY), "f16", KEY)
    assert read_plan(found) == PLAN
    assert sorted(path.suffix for path in folder.iterdir()) == [".json", ".plan"]


def test_nobody_else_may_read_or_write_it(folder: Path) -> None:
    umask = os.umask(0)
    try:
        store_plan(PLAN, KEY, "f32")
    finally:
        os.umask(umask)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}


def test_the_description_says_what_the_plan_was_built_for() -> None:
    stored = store_plan(PLAN, KEY, "f32")
    description = json.loads(stored.path.with_suffix(".json").read_text())
    assert description["plan_sha256"] == hashlib.sha256(PLAN).hexdigest()
    assert description["key"] == {
        "model_sha256": KEY.model_sha256,
        "tensorrt": {"flavour": "tensorrt", "version": "11.4.0.106"},
        "gpu": {"name": "NVIDIA L4", "compute_capability": "8.9", "driver": "13.0"},
        "tile_shape": [96, 160, 160],
        "batch": [2, 4],
        "flags": FLAGS,
    }


def test_no_plan_is_a_sentence_with_the_line_that_builds_one(folder: Path) -> None:
    with pytest.raises(EngineError, match=rf"no TensorRT plan of model\.onnx in {folder}; build one: {HOW}"):
        find()
    store_plan(PLAN, KEY, "f32")
    with pytest.raises(EngineError, match="no TensorRT plan"):
        find(model_sha256="cd" * 32)


@pytest.mark.parametrize(
    ("tensorrt", "gpu", "message"),
    [
        (
            TensorRtIdentity("tensorrt", "10.12.0.36"),
            GPU,
            r"was built with tensorrt 11\.4\.0\.106, and here is tensorrt 10\.12\.0\.36",
        ),
        (TensorRtIdentity("tensorrt_rtx", "11.4.0.106"), GPU, "and here is tensorrt_rtx"),
        (
            TENSORRT,
            GpuIdentity("NVIDIA H100", "9.0", "13.0"),
            r"was built for NVIDIA L4 \(compute capability 8\.9\), and here is NVIDIA H100",
        ),
        (TENSORRT, replace(GPU, driver="12.8"), r"a driver for CUDA 13\.0, and here is one for CUDA 12\.8"),
    ],
)
def test_a_plan_for_something_else_is_refused(tensorrt: TensorRtIdentity, gpu: GpuIdentity, message: str) -> None:
    store_plan(PLAN, KEY, "f32")
    with pytest.raises(EngineError, match=f"{message}.*build it again: {HOW}"):
        find(tensorrt, gpu)


def test_of_several_plans_the_fitting_one_built_last_is_taken() -> None:
    tuned = replace(KEY, batch=(4, 4))
    elsewhere = replace(KEY, gpu=GpuIdentity("NVIDIA H100", "9.0", "13.0"))
    for built, key in enumerate((KEY, tuned, elsewhere)):
        stored = store_plan(PLAN, key, "f32")
        os.utime(stored.path.with_suffix(".json"), (built, built))
    assert find().key == tuned
    assert find(gpu=elsewhere.gpu).key == elsewhere


@pytest.mark.parametrize(
    ("option", "version", "gpu", "fits"),
    [
        ({"version_compatible": True}, "11.5.0.1", GPU, True),
        ({"version_compatible": True}, "11.3.9.9", GPU, False),
        ({"hardware_compatibility": "same_compute_capability"}, "11.4.0.106", replace(GPU, name="NVIDIA L40"), True),
        ({"hardware_compatibility": "same_compute_capability"}, "11.4.0.106", GpuIdentity("A", "9.0", "13.0"), False),
        ({"hardware_compatibility": "ampere_plus"}, "11.4.0.106", GpuIdentity("A", "12.0", "13.0"), True),
        ({"hardware_compatibility": "ampere_plus"}, "11.4.0.106", GpuIdentity("A", "7.5", "13.0"), False),
    ],
)
def test_compatibility_options_widen_what_fits_and_no_further(
    option: dict[str, bool | str], version: str, gpu: GpuIdentity, fits: bool
) -> None:
    store_plan(PLAN, replace(KEY, flags={**FLAGS, **option}), "f32")
    if fits:
        assert find(TensorRtIdentity("tensorrt", version), gpu)
    else:
        with pytest.raises(EngineError, match="build it again"):
            find(TensorRtIdentity("tensorrt", version), gpu)


def test_a_plan_altered_in_one_byte_is_refused() -> None:
    stored = store_plan(PLAN, KEY, "f32")
    stored.path.write_bytes(PLAN.replace(b"code", b"cod3"))
    assert not is_built(KEY)
    with pytest.raises(EngineError, match=f"its sha256 differs.*not opened; build it again: {HOW}"):
        read_plan(find())


def test_a_plan_that_was_removed_is_a_sentence() -> None:
    stored = store_plan(PLAN, KEY, "f32")
    stored.path.unlink()
    with pytest.raises(EngineError, match="cannot be read.*build it again"):
        read_plan(find())


@pytest.mark.parametrize("old", ["11.4.0.106", "NVIDIA L4"])
def test_a_description_edited_to_fit_is_no_description(old: str) -> None:
    description = store_plan(PLAN, KEY, "f32").path.with_suffix(".json")
    description.write_text(description.read_text().replace(old, "99.9"))
    with pytest.raises(EngineError, match="no TensorRT plan"):
        find()


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"schema_version": 2}', "null"])
def test_files_of_another_form_are_passed_over(folder: Path, content: str) -> None:
    stored = store_plan(PLAN, KEY, "f32")
    (folder / "other.json").write_text(content)
    assert find() == stored


def test_what_other_users_may_write_is_refused(folder: Path) -> None:
    stored = store_plan(PLAN, KEY, "f32")
    stored.path.chmod(0o620)
    with pytest.raises(EngineError, match=r"can be written by other users.*chmod go-w"):
        read_plan(find())
    folder.chmod(0o777)
    with pytest.raises(EngineError, match=r"plans can be written by other users.*COVIDSEG_PLAN_CACHE"):
        make_plan_folder()


def test_a_folder_that_cannot_be_made_is_a_sentence(folder: Path) -> None:
    folder.write_text("")
    with pytest.raises(OutputError, match="cannot be made.*COVIDSEG_PLAN_CACHE"):
        store_plan(PLAN, KEY, "f32")


def test_a_lock_is_waited_for_and_freed_when_its_holder_is_killed() -> None:
    make_plan_folder()
    path = plan_path(KEY)
    code = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from covidseg_runtime.engines.plan_cache import lock_plan\n"
        "with lock_plan(Path(sys.argv[1]), lambda: None):\n"
        "    print('held', flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        waited = []

        def kill_the_holder() -> None:
            waited.append(True)
            holder.kill()

        with lock_plan(path, kill_the_holder):
            assert waited == [True]
    with lock_plan(path, lambda: pytest.fail("nobody holds the lock")):
        pass
