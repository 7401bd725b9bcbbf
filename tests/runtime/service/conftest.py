"""A small service: the phantom, its bundle, and an engine that computes at once or behind a gate."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from phantom import pointwise_logits, tiny_model, write_tiny_bundle
from service_peers import ROOMY, Asked, GatedEngine, asking

from covidseg_runtime.bundle import load_bundle
from covidseg_runtime.engines.fake_engine import PointwiseEngine
from covidseg_runtime.segmenter import Segmenter
from covidseg_runtime.service.settings import ServiceSettings


@pytest.fixture
def settings(tmp_path: Path) -> ServiceSettings:
    return ServiceSettings(folder=tmp_path / "service", limits=ROOMY)


@pytest.fixture
def segmenter(tiny_bundle: Path) -> Segmenter:
    return Segmenter(load_bundle(tiny_bundle), PointwiseEngine(pointwise_logits))


@pytest.fixture
def engine() -> Iterator[GatedEngine]:
    gated = GatedEngine(pointwise_logits)
    yield gated
    gated.gate.set()


@pytest.fixture
def gated(tiny_bundle: Path, engine: GatedEngine) -> Segmenter:
    return Segmenter(load_bundle(tiny_bundle), engine)


@pytest.fixture
def client(settings: ServiceSettings, segmenter: Segmenter) -> Iterator[Asked]:
    with asking(settings, segmenter) as client:
        yield client


@pytest.fixture
def scan(phantom_scan: Path) -> bytes:
    """The phantom as .nii.gz."""
    return phantom_scan.read_bytes()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asked]:
    """One service for all tests of a module that change nothing."""
    folder = tmp_path_factory.mktemp("shared")
    bundle = load_bundle(write_tiny_bundle(folder / "tiny", tiny_model()))
    settings = ServiceSettings(folder=folder / "service", limits=ROOMY)
    with asking(settings, Segmenter(bundle, PointwiseEngine(pointwise_logits))) as client:
        yield client
