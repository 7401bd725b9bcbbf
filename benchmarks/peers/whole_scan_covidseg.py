"""covidseg as a contestant of whole_scan.py, in any quality, engine and precision.

python whole_scan_covidseg.py JOB

Options: engine, precision, quality, and way. "segmenter" is what `covidseg segment` does. "peer" is what the peers do,
with the runtime's own parts: the whole volume without a box, overlap 0.5, the peers' importance map, and labels as the
network gives them.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage  # noqa: F401 - `Segmenter.open` loads it with the model, too
from whole_scan_job import Clock, Job, leave_outcome, read_job

from covidseg_runtime import Segmenter, SegmentSettings, Volume, load_bundle, open_engine, read_volume, write_label_map
from covidseg_runtime.bundle import ModelBundle
from covidseg_runtime.engines.engine import Engine
from covidseg_runtime.intensity import clip_and_scale_hounsfield
from covidseg_runtime.resampling import GridPair, to_model_hu, to_source_labels
from covidseg_runtime.sliding_window import predict_tiled
from covidseg_runtime.spooling import Spool
from covidseg_runtime.volume import reorient_array, to_orientation

PEERS_STEP, PEERS_SIGMA = 0.5, 0.125


class TimedEngine:
    """An engine whose calls are timed."""

    def __init__(self, engine: Engine, clock: Clock) -> None:
        """Take an open engine."""
        self.name, self.precision, self.batch = engine.name, engine.precision, engine.batch
        self.any_tile = engine.any_tile
        self._engine = engine
        self._predict = clock.network(engine.predict)

    def predict(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        """The engine's answer."""
        return self._predict(tiles)

    def close(self) -> None:
        """Close the engine."""
        self._engine.close()


def segment_as_shipped(
    volume: Volume, bundle: ModelBundle, engine: Engine, job: Job, clock: Clock
) -> NDArray[np.uint8]:
    """What `covidseg segment` does between reading and writing."""
    settings = SegmentSettings(quality=job.options["quality"], spool=Spool(job.labels.parent))
    segmentation = Segmenter(bundle, engine, settings).segment(volume)
    clock.stages.update(segmentation.timings_s)
    return segmentation.labels


def segment_as_peers(volume: Volume, bundle: ModelBundle, engine: Engine, clock: Clock) -> NDArray[np.uint8]:
    """Label every voxel of the volume, as the peers do."""
    spec = bundle.preprocessing
    plan = replace(bundle.tile_plan, step=PEERS_STEP, importance_sigma=PEERS_SIGMA)
    turned = to_orientation(volume, spec.orientation)
    grids = GridPair.for_spacing(turned.shape, turned.spacing_mm, spec.spacing_mm)
    with clock.stage("to_model_grid"):
        image = to_model_hu(turned.voxels, grids)
    labels = np.empty(turned.shape, np.uint8)
    with clock.stage("network"):
        slabs = predict_tiled(engine, image, plan, partial(clip_and_scale_hounsfield, scaling=spec.scaling))
        for z, classes in to_source_labels(slabs, grids):
            labels[z] = bundle.label_of_class.take(classes)
    return reorient_array(labels, spec.orientation, volume.orientation)


def main() -> None:
    """Load the model and do the job."""
    job, clock = read_job(), Clock()
    bundle = load_bundle(job.model)
    precision = job.options["precision"]
    opened = open_engine(bundle, engine=job.options["engine"], device="cpu", precision=precision, threads=job.threads)
    engine = TimedEngine(opened, clock)

    def segment() -> dict[str, Any]:
        with clock.stage("read"):
            volume = read_volume(job.scan, spool=Spool(job.labels.parent))
        if job.options["way"] == "peer":
            labels = segment_as_peers(volume, bundle, engine, clock)
        else:
            labels = segment_as_shipped(volume, bundle, engine, job, clock)
        with clock.stage("write"):
            write_label_map(job.labels, labels, volume)
        return {"engine": engine.name, "precision": engine.precision}

    leave_outcome(job, clock, segment)


if __name__ == "__main__":
    main()
