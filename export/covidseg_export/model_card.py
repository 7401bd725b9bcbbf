"""MODEL_CARD.md, written from the same values as bundle.json."""

from collections.abc import Mapping, Sequence
from typing import Any

from covidseg_export.parity import ParityLimits
from covidseg_train.datasets.catalog import DATASETS

INTENDED_USE = (
    "Research on the segmentation of COVID-19-like opacities in chest CT. Not a medical device; not for diagnosis, "
    "treatment or triage. An opacity is not specific to COVID-19: other pneumonias, tumours and effusions look alike."
)


def write_model_card(description: Mapping[str, Any], limits: ParityLimits) -> str:
    """Write the card of a bundle description (the content of bundle.json) as Markdown."""
    sections = (
        _title_lines(description),
        _training_lines(description),
        _held_out_lines(description["metrics"]["held_out"]),
        _parity_lines(description["parity"], limits),
        _use_lines(description),
    )
    return "\n".join(line for section in sections for line in (*section, ""))


def _title_lines(description: Mapping[str, Any]) -> list[str]:
    labelled = (
        "infection"
        if description["classes"] == ["background", "infection"]
        else ("left lung, right lung and infection")
    )
    return [
        f"# {description['name']} {description['version']}",
        "",
        f"Segments {labelled} in chest CT. **Research use only.**",
        "",
        "## Licence",
        "",
        f"Weights: {description['licence']}, because of the training data. Code: Apache-2.0.",
    ]


def _training_lines(description: Mapping[str, Any]) -> list[str]:
    training, network = description["training"], description["network"]
    limits = next((one.limits for one in DATASETS.values() if one.title == training["dataset"]), "")
    folds = f", {training['folds']} folds averaged" if "folds" in training else ""
    return [
        "## Trained on",
        "",
        f"{training['dataset']} ({training['licence']}): {', '.join(training['train'])}.",
        f"Cases that picked the checkpoint or drew its curve: {', '.join(training['validation']) or 'none'}.",
        f"Held out, never read while training: {', '.join(training['test']) or 'none'}.",
        "",
        *((limits, "") if limits else ()),
        "Lung labels were made from the CT by rules (threshold and fill), united with the infection; no reader drew "
        "them.",
        "",
        f"Cite: {training['citation']}.",
        "",
        "## Recipe",
        "",
        f"{network['architecture']}, {network['parameters']:,} parameters, widths {network['widths']}{folds}, patch "
        f"{training['patch_shape']}, {training['steps']} steps of {training['batch_size']} patches, "
        f"{training['optimiser']}, strategy `{training['strategy']}`, seed {training['seed']}; "
        f"{training['minutes']} minutes of training. Experiment: `{training['experiment']}`.",
    ]


def _use_lines(description: Mapping[str, Any]) -> list[str]:
    return [
        "## Intended use, and what it must not be used for",
        "",
        description["intended_use"],
        "",
        "Few training cases, one population, no contrast-enhanced scans with COVID-19: expect misses of faint "
        "ground glass, and false positives in effusions, tumours, atelectasis and other pneumonias.",
    ]


def _held_out_lines(results: Sequence[Mapping[str, Any]]) -> list[str]:
    if not results:
        return ["## Measured", "", "No patient was held out, so nothing is known about quality."]
    mean = sum(result["dsc"] for result in results) / len(results)
    return [
        "## Measured",
        "",
        f"Infection on {len(results)} patients it did not learn from, whole runtime, scan's own grid; mean DSC "
        f"{mean:.3f}.",
        "",
        "| case | DSC | NSD (3 mm) | model, mL | reference, mL |",
        "|---|---|---|---|---|",
        *(
            f"| {r['case']} | {r['dsc']:.3f} | {r['nsd_3mm']:.3f} | {r['predicted_ml']:.0f} | {r['reference_ml']:.0f} |"
            for r in results
        ),
    ]


def _parity_lines(parity: Mapping[str, Any], limits: ParityLimits) -> list[str]:
    forced = ["**Written by force: some rows are outside the limits.**", ""] if parity["forced"] else []
    return [
        "## Parity with torch, on real scans through the whole runtime",
        "",
        *forced,
        f"Limits: f32 {limits.f32_logit_difference:g} in a logit and {limits.f32_flipped_share:g} of the voxels; f16 "
        f"{limits.f16_dsc_change:g} in DSC and {limits.f16_mean_logit_difference:g} in the mean logit; int8 and bf16 "
        f"{limits.int8_dsc_change:g} and {limits.int8_mean_logit_difference:g}.",
        "",
        "| scan | file | engine | precision | max Δlogit | mean Δlogit | flipped voxels | DSC to torch | DSC "
        "| torch's DSC | Δ mL | within limits |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
        *(
            f"| {r['scan']} | {r['file']} | {r['engine']} | {r['precision']} | {r['max_logit_difference']:.1e} "
            f"| {r['mean_logit_difference']:.1e} | {r['flipped_voxels']} of {r['voxels']:,} "
            f"| {_number(r['infection_dice'])} | {_number(r['dsc'])} | {_number(r['torch_dsc'])} "
            f"| {r['volume_change_ml']:+.2f} | {'yes' if r['passed'] else '**no**'} |"
            for r in parity["results"]
        ),
    ]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
