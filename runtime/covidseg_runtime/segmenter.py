"""From a chest CT to its label map: the steps in order.

Memory: the scan itself, one uint8 label map of its size, the lung box on the model's grid as int16,
and a few slabs of logits. Logits of the whole scan are never held.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from covidseg_runtime.bundle import LUNG_OF_EITHER_SIDE, ModelBundle, find_bundle, load_bundle
from covidseg_runtime.engines import open_engine
from covidseg_runtime.engines.engine import Engine
from covidseg_runtime.errors import EngineError, SegmentationCancelled, SettingsError
from covidseg_runtime.intensity import clip_and_scale_hounsfield
from covidseg_runtime.lung_box import Box, find_lung_box
from covidseg_runtime.lung_sides import label_sides
from covidseg_runtime.measures import Measures, measure, without_lungs
from covidseg_runtime.postprocessing import remove_detached, remove_small_lesions
from covidseg_runtime.resampling import GridPair, highest_class, to_model_hu, to_source_grid, to_source_labels
from covidseg_runtime.scan_checks import check_lungs, check_scan, warn_of_window
from covidseg_runtime.segment_settings import QUALITIES, SegmentSettings
from covidseg_runtime.sliding_window import LogitSlab, fit_to_engine, predict_tiled, softmax
from covidseg_runtime.spooling import release, zeros
from covidseg_runtime.tiling import TilePlan, grid_tiles
from covidseg_runtime.volume import Volume, reorient_array, to_orientation
from covidseg_runtime.volume_files import read_volume

Progress = Callable[[int, int], None]

_THICK_SLICE_MM = 5.0
_DETACHED_ML = 1.0
_SLICES_BETWEEN = 16
_NO_LUNG_CLASS = "This model labels no lungs, so lung volume and percentage are unknown."


@dataclass(frozen=True, eq=False)
class Segmentation:
    """The result for one scan.

    Attributes:
        labels: (X, Y, Z) uint8 on the scan's own grid: 0 background, 1 left lung, 2 right lung,
            3 infection.
        measures: Volumes in mL, percentages and HU of the labels.
        warnings: Sentences about the scan or the result that a reader has to know.
        box: The part of the scan that the network saw, (Z, Y, X) in the model's orientation.
        tiles: How many tiles the box was cut into on the model's grid, mirror images aside.
        plan: Shape and step of these tiles.
        quality: What the settings asked for.
        timings_s: Step -> seconds.
        infection_probability: (X, Y, Z) uint8 in 255ths, of the network alone, at the bundle's temperature: what was
            done to the labels (small lesions, infection apart from the lungs) is not in it. None unless asked for.
    """

    labels: NDArray[np.uint8]
    measures: Measures
    warnings: tuple[str, ...]
    box: Box
    tiles: int
    plan: TilePlan
    quality: str
    timings_s: Mapping[str, float]
    infection_probability: NDArray[np.uint8] | None = None


class Segmenter:
    """Segments scans with one bundle on one engine: loaded once, used for many scans and by many threads.

    Threads share the engine batch by batch, on a CPU tile by tile; everything else of a scan runs beside the others'.

    Example:
        >>> with Segmenter.open() as segmenter:                 # doctest: +SKIP
        ...     segmentation = segmenter.segment(volume)
        >>> segmentation.measures.infection_percent.whole    # doctest: +SKIP
        12.5
    """

    def __init__(self, bundle: ModelBundle, engine: Engine, settings: SegmentSettings | None = None) -> None:
        """Use an engine that is already open; `close` closes it.

        Args:
            bundle: A bundle that `load_bundle` verified.
            engine: Any engine whose network has the bundle's labels as classes.
            settings: None is `SegmentSettings()`.
        """
        self.bundle = bundle
        self.engine = engine
        self.settings = settings or SegmentSettings()
        self._shared = _OneAtATime(engine)

    @property
    def tile_plan(self) -> TilePlan:
        """How scans are cut into tiles: as the bundle says, but for the step of the quality."""
        step = QUALITIES[self.settings.quality].step
        return replace(self.bundle.tile_plan, step=step or self.bundle.tile_plan.step)

    @classmethod
    def open(
        cls,
        model: str | None = None,
        *,
        engine: str = "auto",
        device: str = "auto",
        precision: str = "auto",
        threads: int | None = None,
        settings: SegmentSettings | None = None,
    ) -> Segmenter:
        """Find, verify and load a model.

        Args:
            model: Name of a shipped bundle or path of a bundle's folder; None is the default.
            engine: "auto", "openvino", "onnxruntime" or "tensorrt".
            device: "auto", "cpu", "cuda" or "cuda:n".
            precision: "auto", "f32", "bf16", "f16" or "int8"; see `open_engine`.
            threads: Number of CPU threads; None leaves the choice to the engine.
            settings: None is `SegmentSettings()`.

        Raises:
            BundleError: if the bundle is missing or altered.
            EngineError: if no engine can run it as asked for.
        """
        from scipy import ndimage  # noqa: F401 - a fifth of a second that the first scan need not wait

        bundle = load_bundle(find_bundle(model))
        opened = open_engine(bundle, engine=engine, device=device, precision=precision, threads=threads)
        return cls(bundle, opened, settings)

    def segment(
        self,
        scan: Volume | Path | NDArray[Any],
        on_progress: Progress | None = None,
        *,
        affine: NDArray[np.float64] | None = None,
        cancel: threading.Event | None = None,
    ) -> Segmentation:
        """Label lungs and infection in a chest CT.

        Args:
            scan: A volume in HU, (X, Y, Z) in any orientation; a NIfTI file; or an array with its ``affine``. It is
                not changed.
            on_progress: Called after each tile with (tiles done, tiles in total), in the caller's thread. What it
                raises ends the segmentation and reaches the caller; the segmenter can be used on.
            affine: Of an array: voxel index to RAS+ millimetres, as in NIfTI.
            cancel: Set it, from any thread, to end the segmentation after the batch of tiles that is being computed:
                one tile on a CPU.

        Raises:
            VolumeError: if the scan is unsuitable.
            EngineError: if the engine fails, or if its network has other classes than the bundle.
            SegmentationCancelled: if ``cancel`` was set.
        """
        volume = self._as_volume(scan, affine)
        clock = _Clock()
        preprocessing = self.bundle.preprocessing
        turned = to_orientation(volume, preprocessing.orientation)  # (Z, Y, X), a view
        with clock.step("check_scan"):
            scan_warnings = check_scan(turned.voxels, turned.spacing_mm)
        with clock.step("lung_box"):
            box = find_lung_box(turned.voxels, turned.spacing_mm)
        grids = GridPair.for_spacing(box.shape, turned.spacing_mm, preprocessing.spacing_mm)
        with clock.step("to_model_grid"):
            image = to_model_hu(turned.voxels[box.slices], grids)
        with clock.step("network"):
            plan = fit_to_engine(self.tile_plan, self.engine, grids.model_shape)
            slabs = self._predict(image, plan, _on_tile(on_progress, cancel))
            labels, probability = self._label_scan(slabs, grids, turned.shape, box)
        detached_ml = self._clean(labels, turned.spacing_mm, clock)
        measures, lung_warnings = self._measure(labels, turned, clock)
        ways = preprocessing.orientation, volume.orientation
        return Segmentation(
            labels=reorient_array(labels, *ways),
            measures=measures,
            warnings=(
                *warn_of_window(volume.window_hu),
                *scan_warnings,
                *_warn_of_scan(box, turned.spacing_mm),
                *lung_warnings,
                *_warn_of_detached(detached_ml),
            ),
            box=box,
            tiles=len(grid_tiles(grids.model_shape, plan)),
            plan=plan,
            quality=self.settings.quality,
            timings_s=clock.timings_s,
            infection_probability=None if probability is None else reorient_array(probability, *ways),
        )

    def with_settings(self, settings: SegmentSettings) -> Segmenter:
        """Another segmenter on the same engine, which stays this one's to close; the two take turns at it."""
        other = Segmenter(self.bundle, self.engine, settings)
        other._shared = self._shared
        return other

    def predict(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        """The engine alone, in turn with the scans that are being segmented: see `Engine.predict`.

        Args:
            tiles: (N, 1, Z, Y, X) float32, clipped and scaled.

        Returns:
            Logits, (N, C, Z, Y, X) float32.

        Raises:
            EngineError: if the engine fails.
        """
        return self._shared.predict(tiles)

    def close(self) -> None:
        """Close the engine and give its memory back."""
        self.engine.close()

    def __enter__(self) -> Segmenter:
        """The segmenter itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the engine."""
        self.close()

    def _as_volume(self, scan: Volume | Path | NDArray[Any], affine: NDArray[np.float64] | None) -> Volume:
        if isinstance(scan, np.ndarray):
            if affine is None:
                raise SettingsError("an array was given without its affine: segment(array, affine=affine)")
            return Volume(scan, affine)
        if affine is not None:
            raise SettingsError("affine goes with an array; a volume or a file has its own")
        if isinstance(scan, Volume):
            return scan
        return read_volume(Path(scan), spool=self.settings.spool, window=self.settings.window_hu)

    def _predict(self, image: NDArray[np.int16], plan: TilePlan, on_progress: Progress | None) -> Iterator[LogitSlab]:
        """Logits of the box, on the model's grid, slab by slab."""
        prepare = partial(clip_and_scale_hounsfield, scaling=self.bundle.preprocessing.scaling)
        mirror_axes = QUALITIES[self.settings.quality].mirror_axes
        slabs = predict_tiled(self._shared, image, plan, prepare, mirror_axes=mirror_axes, on_tile=on_progress)
        return _check_classes(slabs, len(self.bundle.classes))

    def _clean(self, labels: NDArray[np.uint8], spacing_mm: tuple[float, float, float], clock: _Clock) -> float:
        """Mend the labels (Z, Y, X) in place: apart from the lungs, sides, small lesions; mL that lay apart."""
        detached_ml = 0.0
        if self.bundle.tells_lungs_apart:
            with clock.step("remove_detached"):
                detached_ml = remove_detached(labels, spacing_mm)
        if LUNG_OF_EITHER_SIDE in self.bundle.classes:
            with clock.step("lung_sides"):
                label_sides(labels, spacing_mm)
        with clock.step("remove_small_lesions"):
            remove_small_lesions(labels, spacing_mm, self.settings.min_lesion_ml)
        return detached_ml

    def _measure(self, labels: NDArray[np.uint8], turned: Volume, clock: _Clock) -> tuple[Measures, tuple[str, ...]]:
        """The measures of the labels (Z, Y, X), and what is to be said of the lungs."""
        with clock.step("measure"):
            measures = measure(labels, turned.voxels, turned.spacing_mm)
        if not self.bundle.tells_lungs_apart:
            return without_lungs(measures), (_NO_LUNG_CLASS,)
        return measures, check_lungs(labels, turned.voxels, turned.spacing_mm, measures)

    def _label_scan(
        self, slabs: Iterator[LogitSlab], grids: GridPair, shape: tuple[int, ...], box: Box
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
        """Labels of the whole scan (Z, Y, X), 0 outside the box, and the infection's probability if it is kept."""
        labels = zeros(shape, np.uint8, self.settings.spool)
        if not self.settings.keep_probability:
            self._label(slabs, grids, labels[box.slices])
            return labels, None
        probability = zeros(shape, np.uint8, self.settings.spool)
        self._label_with_probability(slabs, grids, labels[box.slices], probability[box.slices])
        return labels, probability

    def _label(self, slabs: Iterator[LogitSlab], grids: GridPair, labels: NDArray[np.uint8]) -> None:
        """Write the labels into `labels`, (Z, Y, X) on the source grid, slice by slice."""
        label_of_class = self.bundle.label_of_class
        for z, classes in to_source_labels(slabs, grids):
            labels[z] = label_of_class.take(classes)
            if z % _SLICES_BETWEEN == 0:
                release(labels)
        release(labels)

    def _label_with_probability(
        self, slabs: Iterator[LogitSlab], grids: GridPair, labels: NDArray[np.uint8], probability: NDArray[np.uint8]
    ) -> None:
        """The same labels, and the infection's probability in 255ths; both (Z, Y, X) on the source grid."""
        label_of_class, infection = self.bundle.label_of_class, self.bundle.classes.index("infection")
        is_averaged = self.tile_plan.average == "probabilities"
        temperature = np.float32(self.bundle.calibration.temperature)
        for z, logits in to_source_grid(slabs, grids):
            labels[z] = label_of_class.take(highest_class(logits))
            probability[z] = np.rint(255 * (logits if is_averaged else softmax(logits / temperature))[infection])
            if z % _SLICES_BETWEEN == 0:
                release(labels)
                release(probability)
        release(labels)
        release(probability)


class _OneAtATime:
    """An engine that many threads may call: each waits for its turn."""

    def __init__(self, engine: Engine) -> None:
        self.name, self.precision, self.batch = engine.name, engine.precision, engine.batch
        self.any_tile = engine.any_tile
        self._engine = engine
        self._lock = threading.Lock()

    def predict(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        with self._lock:
            return self._engine.predict(tiles)

    def close(self) -> None:
        self._engine.close()


class _Clock:
    """Seconds of each step."""

    def __init__(self) -> None:
        self.timings_s: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.timings_s[name] = time.perf_counter() - start


def _on_tile(on_progress: Progress | None, cancel: threading.Event | None) -> Progress | None:
    """What is called after each tile."""
    if cancel is None:
        return on_progress

    def stop_or_report(done: int, total: int) -> None:
        if on_progress is not None:
            on_progress(done, total)
        if cancel.is_set():
            raise SegmentationCancelled(f"cancelled after {done} of {total} tiles")

    return stop_or_report


def _check_classes(slabs: Iterator[LogitSlab], classes: int) -> Iterator[LogitSlab]:
    for slab in slabs:
        if slab.logits.shape[0] != classes:
            raise EngineError(f"the network gives {slab.logits.shape[0]} classes, the bundle names {classes}")
        yield slab


def _warn_of_scan(box: Box, spacing_mm: tuple[float, float, float]) -> tuple[str, ...]:
    found: list[str] = []
    if box.rule != "lungs":
        part = "the body" if box.rule == "body" else "the whole scan"
        found.append(f"No air-filled lungs were found before segmenting, so {part} was segmented.")
    if spacing_mm[0] > _THICK_SLICE_MM:
        found.append(
            f"Slices are {spacing_mm[0]:g} mm apart; above {_THICK_SLICE_MM:g} mm small lesions "
            "are missed and volumes are coarse."
        )
    return tuple(found)


def _warn_of_detached(detached_ml: float) -> tuple[str, ...]:
    if detached_ml < _DETACHED_ML:
        return ()
    return (f"{detached_ml:.1f} mL that the network called infection lie apart from the lungs and were removed.",)
