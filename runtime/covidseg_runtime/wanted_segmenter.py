"""A segmenter as it is asked for: a value, which another thread, process or machine can open."""

from __future__ import annotations

from dataclasses import dataclass, field

from covidseg_runtime.segment_settings import SegmentSettings
from covidseg_runtime.segmenter import Segmenter


@dataclass(frozen=True)
class WantedSegmenter:
    """What `Segmenter.open` takes.

    Attributes:
        model: Name of a shipped bundle or path of a bundle's folder; None is the default.
        engine: "auto", "openvino", "onnxruntime" or "tensorrt".
        device: "auto", "cpu", "cuda" or "cuda:n".
        precision: "auto", "f32", "bf16", "f16" or "int8".
        threads: Number of CPU threads; None leaves the choice to the engine.
        settings: What a caller may set.
    """

    model: str | None = None
    engine: str = "auto"
    device: str = "auto"
    precision: str = "auto"
    threads: int | None = None
    settings: SegmentSettings = field(default_factory=SegmentSettings)

    def open(self) -> Segmenter:
        """Find, verify and load the model.

        Raises:
            BundleError: if the bundle is missing or altered.
            EngineError: if no engine can run it as asked for.
        """
        return Segmenter.open(
            self.model,
            engine=self.engine,
            device=self.device,
            precision=self.precision,
            threads=self.threads,
            settings=self.settings,
        )
