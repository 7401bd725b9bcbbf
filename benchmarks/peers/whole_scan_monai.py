"""MONAI's SlidingWindowInferer on torch float32 as a contestant of whole_scan.py; it reads and writes by MONAI too.

python whole_scan_monai.py JOB

Options: overlap; null is the bundle's own.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from monai.data import NibabelWriter
from monai.transforms import LoadImage
from whole_scan_job import Clock, leave_outcome, read_job

from covidseg_export.source import load_bundle_network
from covidseg_runtime import Volume, load_bundle
from covidseg_train.monai_peer import MonaiPeer


def main() -> None:
    """Load the network and do the job."""
    job, clock = read_job(), Clock()
    torch.set_num_threads(job.threads)
    bundle, overlap = load_bundle(job.model), job.options["overlap"]
    if overlap is not None:
        bundle = replace(bundle, tile_plan=replace(bundle.tile_plan, step=1 - overlap))
    network = load_bundle_network(bundle)
    network.finest_logits = clock.network(network.finest_logits)  # type: ignore[method-assign]
    peer = MonaiPeer(network, bundle, device="cpu")

    def segment() -> dict[str, Any]:
        with clock.stage("read"):
            image = LoadImage(image_only=True)(job.scan)
            volume = Volume(image.numpy(), np.asarray(image.affine))
        labels = peer.segment(volume)
        with clock.stage("write"):
            writer = NibabelWriter(output_dtype=np.uint8)
            writer.set_data_array(labels, channel_dim=None)
            writer.set_metadata({"affine": volume.affine}, resample=False)
            writer.write(str(job.labels))
        return {"engine": "torch", "precision": "f32", "torch": torch.__version__}

    leave_outcome(job, clock, segment)


if __name__ == "__main__":
    main()
