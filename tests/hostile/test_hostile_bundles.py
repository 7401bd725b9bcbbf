"""Whatever is in a bundle: it opens, or is refused with a BundleError or an EngineError, and no process dies of it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from hostile.bundles import hostile_bundle, sound_model
from hostile.watched import WatchedChild
from phantom import write_tiny_bundle

from covidseg_runtime.bundle import load_bundle
from covidseg_runtime.errors import BundleError
from covidseg_runtime.onnx_guard import refuse_unsafe_model

CORPUS = Path(__file__).with_name("corpus")
_SEEDS = range(120)


@pytest.fixture(scope="module")
def child() -> Iterator[WatchedChild]:
    with WatchedChild() as child:
        yield child


def test_any_hostile_bundle_opens_or_is_refused(child: WatchedChild) -> None:
    attempts = [child.attempt(f"bundle {seed}") for seed in _SEEDS]
    assert [attempt for attempt in attempts if attempt.fault] == []
    assert {attempt.end for attempt in attempts} >= {"opened", "BundleError", "EngineError"}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model-endless-opset.onnx", "wants operator set 4611686018427387904"),
        ("model-doubled-forty-times.onnx", "computes 'Concat' from constants alone"),
        ("model-input-of-a-gigabyte.onnx", "takes tiles of 268435456 voxels"),
        ("model-without-output.onnx", "has 1 inputs and 0 outputs"),
        ("model-external-in-33-bits.onnx", "field number 536870925"),
    ],
)
def test_a_model_that_once_got_past_the_guard_is_refused(tmp_path: Path, name: str, message: str) -> None:
    folder = write_tiny_bundle(tmp_path / "bundle", (CORPUS / name).read_bytes())
    with pytest.raises(BundleError, match=message):
        load_bundle(folder)


def test_a_name_that_is_no_text_is_refused_by_the_engines(child: WatchedChild) -> None:
    attempt = child.attempt(f"bundle {CORPUS / 'model-name-no-text.onnx'}")
    assert (attempt.end, attempt.fault) == ("EngineError", None)


@pytest.mark.parametrize("path", sorted(CORPUS.glob("description-*.json")), ids=lambda path: path.stem)
def test_a_description_that_once_found_something_is_refused(child: WatchedChild, path: Path) -> None:
    attempt = child.attempt(f"bundle {path}")
    assert (attempt.end, attempt.fault) == ("BundleError", None)


def test_a_pipe_as_description_is_not_waited_for(child: WatchedChild) -> None:
    seed = next(seed for seed in range(2000) if "bundle.json is a FIFO" in hostile_bundle(Random(seed)).changes)
    attempt = child.attempt(f"bundle {seed}")
    assert (attempt.end, attempt.fault) == ("BundleError", None)


def test_a_seed_names_a_bundle_for_good() -> None:
    first = [hostile_bundle(Random(seed)) for seed in range(30)]
    assert [hostile_bundle(Random(seed)) for seed in range(30)] == first


def test_the_exported_network_is_let_through(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(sound_model())
    refuse_unsafe_model(path)


def test_fields_without_end_are_not_read_to_the_end(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(sound_model() + b"\x08\x08" * 300_000)
    with pytest.raises(BundleError, match="more than 200,000 fields"):
        refuse_unsafe_model(path)


def test_a_child_that_dies_or_stops_is_named_and_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    with WatchedChild() as child:
        os.kill(child.pid, signal.SIGSEGV)
        assert child.attempt("scan 3").fault == "crash"
        os.kill(child.pid, signal.SIGSTOP)
        with monkeypatch.context() as impatient:
            impatient.setattr("hostile.watched._PATIENCE_SECONDS", 0.5)
            assert child.attempt("scan 3").fault == "hang"
        assert child.attempt("scan 3").fault is None
