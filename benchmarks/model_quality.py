"""What is a bundle good for, and where does it fail?

    python benchmarks/model_quality.py DATA [--model BUNDLE] [-o FOLDER] [--only SECTION ...] [--threads N]
    python benchmarks/model_quality.py --markdown          # the tables of the kept result

DATA holds covid/, ct/, lesions/, lungs/, healthy_and_other/ and out_of_distribution/. Whole public runtime, each scan's
own grid. Sections are kept one by one, so that a long run can be parted with --only; --cases is a trial and keeps
nothing. FOLDER takes overlays (none without -o). docs/quality.md says what each section means.
"""

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from model_quality_cases import measure_covid, measure_ground_glass, measure_lungs, measure_without_covid
from model_quality_limits import measure_modified, measure_out_of_distribution
from model_quality_scans import unnamed_sources
from model_quality_tables import to_markdown
from model_quality_trial import Trial
from record import RESULTS, earlier_result, keep_result

from covidseg_runtime import CovidsegError, Segmenter, SettingsError
from covidseg_runtime.report import plain_json

NAME = "model_quality"

SECTIONS: Mapping[str, Callable[[Trial], dict[str, Any]]] = {
    "covid": measure_covid,
    "without_covid": measure_without_covid,
    "ground_glass": measure_ground_glass,
    "lungs": measure_lungs,
    "modified": measure_modified,
    "out_of_distribution": measure_out_of_distribution,
}


def describe_model(segmenter: Segmenter) -> dict[str, Any]:
    """What the numbers belong to."""
    bundle, engine = segmenter.bundle, segmenter.engine
    return {
        "name": bundle.name,
        "version": bundle.version,
        "files": {file.name: file.sha256 for file in bundle.files},
        "engine": [engine.name, engine.precision],
        "quality": segmenter.settings.quality,
        "unnamed_sources": unnamed_sources(bundle.card.get("training", {})),
    }


def _kept(model: Mapping[str, Any]) -> dict[str, Any]:
    """The sections kept so far of this very model."""
    record = earlier_result(NAME)
    return dict(record["sections"]) if record.get("model") == model else {}


def run(arguments: argparse.Namespace) -> None:
    """Measure the sections asked for and keep them, or print them where only some cases were."""
    if arguments.folder is not None:
        arguments.folder.mkdir(parents=True, exist_ok=True)
    with Segmenter.open(arguments.model, threads=arguments.threads) as segmenter:
        model = describe_model(segmenter)
        trial = Trial(segmenter, arguments.data, arguments.folder, tuple(arguments.cases))
        found = {name: plain_json(SECTIONS[name](trial)) for name in arguments.only or SECTIONS}
    if not any(section["cases"] for section in found.values()):
        raise SettingsError(f"no section asked for has any of the cases {', '.join(arguments.cases)}")
    if arguments.cases:
        print(json.dumps({"model": model, "sections": found}, indent=2, ensure_ascii=False))
    else:
        sections = _kept(model) | found
        keep_result(NAME, {"model": model, "sections": {name: sections[name] for name in SECTIONS if name in sections}})


def main() -> None:
    """Read the command line; measure, or print the tables of what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--model", help="another bundle than the default one")
    parser.add_argument("-o", dest="folder", type=Path, help="folder for overlays")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--cases", nargs="+", default=(), help="a trial on these cases: printed, not kept")
    parser.add_argument("--threads", type=int, help="CPU threads; the engine's choice without")
    parser.add_argument(
        "--markdown", type=Path, nargs="?", const=RESULTS / f"{NAME}.json", help="print the tables of a result"
    )
    arguments = parser.parse_args()
    if arguments.markdown is not None:
        if not arguments.markdown.is_file():
            parser.error(f"{arguments.markdown} is not there; measure first")
        print(to_markdown(json.loads(arguments.markdown.read_text(encoding="utf-8"))))
    elif arguments.data is None or not (arguments.data / "covid").is_dir():
        parser.error(f"{arguments.data} holds no folder covid; give DATA")
    else:
        try:
            run(arguments)
        except CovidsegError as error:
            raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
