"""MODEL_CARD.md, written from the same values as bundle.json; its head is what Hugging Face reads."""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from covidseg_export.calibration import calibration_lines
from covidseg_export.decision import decision_in_a_line
from covidseg_export.evidence import SMALLEST_REFERENCE_ML, averaged, median_volume_error
from covidseg_export.fine_tuning import fine_tuning_lines
from covidseg_export.parity import ParityLimits
from covidseg_export.provenance import describe_hosts
from covidseg_train.datasets.catalog import DATASETS
from covidseg_train.paired_tests import RESAMPLES, SEED, bootstrap_interval

INTENDED_USE = (
    "Research on the segmentation of COVID-19-like opacities in chest CT. Not a medical device; not for diagnosis, "
    "treatment or triage. An opacity is not specific to COVID-19: other pneumonias, tumours and effusions look alike."
)
FORBIDDEN_USES = (
    "Diagnosis, treatment, triage, or any other decision about a patient.",
    "Telling COVID-19 from another disease, or saying that a patient has none.",
    "Following one patient over time without a reader: how well two scans compare was not measured.",
    "Scans of children, of other body parts, or with contrast agent: how it does on them is not known.",
)
WATTS_A_CORE = 10.0
# Fewer patients than these have no interval worth the name.
FEWEST_PATIENTS = 3
# Bundles up to 0.6.0 do not say which; it was the best.
_WEIGHTS = {None: "", "best": ", its best weights on the validation cases", "last": ", its last weights"}
_HUB_LICENCE = re.compile(r"CC BY(-NC)?(-SA|-ND)? [34]\.0")


def write_model_card(description: Mapping[str, Any], limits: ParityLimits) -> str:
    """Write the card of a bundle description (the content of bundle.json) as Markdown with a head in YAML."""
    sections = (
        _head_lines(description),
        _title_lines(description),
        _use_lines(description),
        _format_lines(description),
        _data_lines(description),
        _recipe_lines(description),
        _held_out_lines(description),
        *_evidence_sections(description["metrics"]),
        _cost_lines(description["training"]),
        fine_tuning_lines(description),
        _parity_lines(description["parity"], limits),
    )
    return "\n".join(line for section in sections for line in (*section, ""))


def _head_lines(description: Mapping[str, Any]) -> list[str]:
    """The head; every text is a JSON string, which is one in YAML as well."""
    licence = description["licence"]
    if _HUB_LICENCE.fullmatch(licence):
        licence_lines = [f"license: {licence.lower().replace(' ', '-')}"]
    else:
        licence_lines = ["license: other", f"license_name: {json.dumps(licence)}"]
    titles = dict.fromkeys(one["dataset"] for one in _training_sets(description["training"]))
    return [
        "---",
        *licence_lines,
        "library_name: covidseg",
        "pipeline_tag: image-segmentation",
        "tags:",
        *(f"- {tag}" for tag in ("medical-imaging", "ct", "chest", "lung", "covid-19", "3d-segmentation", "onnx")),
        "metrics:",
        "- dice",
        "- normalised-surface-dice",
        "datasets:",
        *(f"- {json.dumps(title, ensure_ascii=False)}" for title in titles),
        "---",
    ]


def _title_lines(description: Mapping[str, Any]) -> list[str]:
    labelled = "left lung, right lung and infection" if _knows_lung(description) else "infection"
    return [
        f"# {description['name']} {description['version']}",
        "",
        f"Segments {labelled} in chest CT. **Research use only.**",
        "",
        "## Licence",
        "",
        f"Weights: {description['licence']}, because of the training data, whose other licences stand below. "
        "Code: Apache-2.0.",
    ]


def _use_lines(description: Mapping[str, Any]) -> list[str]:
    commercial = ("Commercial use: the licence of the data forbids it.",) if "NC" in description["licence"] else ()
    return [
        "## Intended use",
        "",
        description["intended_use"],
        "",
        "## What it must not be used for",
        "",
        *(f"- {use}" for use in (*FORBIDDEN_USES, *commercial)),
        "",
        "Few training cases, one population, no contrast-enhanced scans with COVID-19: expect misses of faint "
        "ground glass, and false positives in effusions, tumours, atelectasis and other pneumonias.",
    ]


def _format_lines(description: Mapping[str, Any]) -> list[str]:
    grid, tiles = description["preprocessing"], description["tile_plan"]
    scaling = grid["scaling"]
    shape = "×".join(map(str, tiles["tile_shape"]))
    return [
        "## Input and output",
        "",
        f"In: CT in HU, orientation {grid['orientation']}, spacing {_listed(grid['spacing_mm'])} mm (z, y, x), clipped "
        f"to [{scaling['lower_hu']:g}, {scaling['upper_hu']:g}] HU, minus {scaling['mean_hu']:g}, divided by "
        f"{scaling['sd_hu']:g}; float32 tiles (N, 1, Z, Y, X) of {shape}, {tiles['step']:g} of a tile apart.",
        f"Out: logits (N, {len(description['classes'])}, Z, Y, X) of {', '.join(description['classes'])}. "
        "`covidseg segment` does all of it and writes a label map on the scan's own grid.",
    ]


def _data_lines(description: Mapping[str, Any]) -> list[str]:
    training = description["training"]
    pretraining = training.get("pretraining", [])
    lung = (
        "Lung labels were made from the CT by rules (threshold and fill), united with the infection; no reader drew "
        "them.",
        "",
    )
    return [
        "## Trained on",
        "",
        *_set_lines([training, *training.get("sources", [])]),
        *_mass_lines(training),
        "",
        f"Cases that picked the checkpoint or drew its curve: {', '.join(training['validation']) or 'none'}.",
        f"Held out, never read while training: {', '.join(training['test']) or 'none'}.",
        "",
        *(lung if _knows_lung(description) else ()),
        "## Pre-trained on",
        "",
        *([line for one in pretraining for line in _pretraining_lines(one)] or [_no_pretraining(training)]),
    ]


def _no_pretraining(training: Mapping[str, Any]) -> str:
    if training["strategy"] == "scratch":
        return "Nothing: it started from random weights."
    return f"Not recorded; the strategy was `{training['strategy']}`."


def _pretraining_lines(one: Mapping[str, Any]) -> list[str]:
    if not one["at_hand"]:
        return [f"`{one['checkpoint']}`, which was not at hand at export: what it learned from is not known here.", ""]
    from_bundle = f", of bundle {one['bundle']}" if "bundle" in one else ""
    if "dataset" not in one:
        return [f"`{one['checkpoint']}`{from_bundle}, which does not say what it learned from.", ""]
    return [
        f"`{one['experiment']}`{from_bundle}, strategy `{one['strategy']}`, {one['steps']} steps of "
        f"{one['batch_size']} patches, seed {one['seed']}:",
        "",
        *_set_lines([one, *one.get("sources", [])]),
        *_mass_lines(one),
        "",
    ]


def _mass_lines(training: Mapping[str, Any]) -> tuple[str, ...]:
    share = training.get("simulated_masses", 0.0)
    if not share:
        return ()
    return (
        f"- Opaque masses, **simulated** by a program, in the lungs of {share:.0%} of the patches: they taught where "
        "the lung is, nothing about infection.",
    )


def _set_lines(sets: Iterable[Mapping[str, Any]]) -> list[str]:
    lines = []
    for one in map(_completed, sets):
        simulated = "**simulated** by a program, no patient's lesions; " if one["is_simulated"] else ""
        cases = "every case" if one["train"] == ["*"] else f"{len(one['train'])}: {', '.join(one['train'])}"
        lines.append(f"- **{one['dataset']}** ({simulated}{one['licence']}). Cases: {cases}. Cite: {one['citation']}.")
        lines += [
            f"  Drawn into scans of {host['dataset']} ({host['licence']}). Cite: {host['citation']}."
            for host in one["hosts"]
        ]
        lines += [f"  Limits: {one['limits']}"] if one["limits"] else []
    return lines


def _completed(one: Mapping[str, Any]) -> dict[str, Any]:
    """A set with all that is said of one; bundles up to 0.2.0 left limits, up to 0.7.0 hosts to the catalogue."""
    known = next((dataset for dataset in DATASETS.values() if dataset.title == one["dataset"]), None)
    limits, is_simulated = (known.limits, known.is_simulated) if known else ("", False)
    hosts = describe_hosts(one["train"]) if one.get("is_simulated", is_simulated) else []
    return {"limits": limits, "is_simulated": is_simulated, "hosts": hosts, **one}


def _training_sets(training: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Every set of the training and its pre-trainings, as far as they are known."""
    trainings = [training, *training.get("pretraining", [])]
    return [one for each in trainings for one in (each, *each.get("sources", [])) if "dataset" in one]


def _recipe_lines(description: Mapping[str, Any]) -> list[str]:
    training, network = description["training"], description["network"]
    folds = f", {training['folds']} folds averaged" if "folds" in training else ""
    return [
        "## Recipe",
        "",
        f"{network['architecture']}, {network['parameters']:,} parameters, widths {network['widths']}{folds}, patch "
        f"{training['patch_shape']}, {training['steps']} steps of {training['batch_size']} patches, "
        f"{training['optimiser']}, strategy `{training['strategy']}`, seed {training['seed']}; "
        f"{training['minutes']} minutes of training. Experiment: `{training['experiment']}`"
        f"{_WEIGHTS[training.get('weights')]}.",
        f"Exported from {_describe_commit(description.get('commit'))}.",
    ]


def _describe_commit(commit: Mapping[str, Any] | None) -> str:
    if commit is None:
        return "an installed covidseg, whose commit is not recorded"
    return f"commit `{commit['sha']}`" + ("" if commit["is_clean"] else ", with changes that were not committed")


def _held_out_lines(description: Mapping[str, Any]) -> list[str]:
    results, decision = description["metrics"]["held_out"], description.get("decision")
    if not results:
        return ["## Measured", "", "No patient was held out, so nothing is known about quality."]
    selecting = [result["case"] for result in results if result["case"] in description["training"]["validation"]]
    selected = (f"Of these, {', '.join(selecting)} picked the checkpoint or drew its curve: expect less.", "")
    return [
        "## Measured",
        "",
        f"Infection in {len(results)} cases it did not learn from, whole runtime, scan's own grid.",
        "",
        *(f"- {name}: {_mean_line(results, key)}" for key, name in (("dsc", "DSC"), ("nsd_3mm", "NSD (3 mm)"))),
        "",
        *(selected if selecting else ()),
        *_result_table(results),
        "",
        *([f"Where infection begins: {decision_in_a_line(decision)}.", ""] if decision else ()),
        *calibration_lines(description.get("calibration")),
        "",
        "## Where it fails",
        "",
        *_failure_lines(results),
    ]


def _result_table(results: Sequence[Mapping[str, Any]]) -> list[str]:
    return [
        "| case | DSC | NSD (3 mm) | model, mL | reference, mL |",
        "|---|---|---|---|---|",
        *(
            f"| {r['case']} | {r['dsc']:.3f} | {r['nsd_3mm']:.3f} | {r['predicted_ml']:.0f} | {r['reference_ml']:.0f} |"
            for r in results
        ),
    ]


def _mean_lines(all_results: Sequence[Mapping[str, Any]]) -> list[str]:
    results = averaged(all_results)
    left_out = [row["case"] for row in all_results if row not in results]
    if not results:
        return [f"No case holds {SMALLEST_REFERENCE_ML:g} mL of infection: there is no mean."]
    return [
        *(f"- {name}: {_mean_line(results, key)}" for key, name in (("dsc", "DSC"), ("nsd_3mm", "NSD (3 mm)"))),
        f"- Volume: off by {median_volume_error(results):.0%} in the median.",
        *(f"- Not averaged, less than {SMALLEST_REFERENCE_ML:g} mL: {case}." for case in left_out),
    ]


def _evidence_sections(metrics: Mapping[str, Any]) -> list[list[str]]:
    folds, external = metrics.get("cross_validation", ()), metrics.get("external")
    sections = []
    if folds:
        count = len({row["fold"] for row in folds})
        sections.append(
            [
                "## Cross-validation of the recipe",
                "",
                f"{count} networks trained alike, each without other patients; every case by the network that had not "
                "met it. They tell what the recipe is worth, not what these weights are.",
                "",
                *_mean_lines(folds),
                "",
                *_result_table(folds),
            ]
        )
    if external is not None:
        sections.append(_external_lines(external))
    return sections


def _external_lines(external: Mapping[str, Any]) -> list[str]:
    results, against = external["results"], external.get("against", ())
    lines = [
        f"## Measured on {external['dataset']}",
        "",
        f"{len(results)} cases of a data set from which nothing was learned. {external['limits']}",
        "",
        *_mean_lines(results),
        "",
        *_result_table(results),
    ]
    if against:
        theirs = {row["case"]: row["dsc"] for row in averaged(against)}
        own = [row["dsc"] for row in results if row["case"] in theirs]
        mean, other = sum(own) / len(own), sum(theirs.values()) / len(theirs)
        names = ", ".join(dict.fromkeys(row["bundle"] for row in against))
        lines += [
            "",
            f"Set beside {names}, on the {len(own)} of these cases from which neither learned: mean DSC {mean:.3f} "
            f"against {other:.3f}, a difference of {mean - other:+.3f}.",
        ]
    return lines


def _mean_line(results: Sequence[Mapping[str, Any]], key: str) -> str:
    """The mean over patients with its interval; a measure that is not defined for a case leaves it out."""
    by_patient: dict[str, list[float]] = {}
    for result in results:
        if not math.isnan(result[key]):
            by_patient.setdefault(result.get("patient", result["case"]), []).append(result[key])
    values = [sum(of_one) / len(of_one) for of_one in by_patient.values()]
    if not values:
        return "not defined for any case."
    mean = f"mean {sum(values) / len(values):.3f} over n = {len(values)} patients"
    if len(values) < FEWEST_PATIENTS:
        return f"{mean}, too few for an interval."
    lower, upper = bootstrap_interval(values)
    drawn = f"{RESAMPLES} draws of patients, seed {SEED}"
    return f"{mean}, 95 % interval {lower:.3f} to {upper:.3f} (BCa bootstrap, {drawn})."


def _failure_lines(results: Sequence[Mapping[str, Any]]) -> list[str]:
    worst = min(results, key=lambda result: math.inf if math.isnan(result["dsc"]) else result["dsc"])
    too_much = sum(result["predicted_ml"] > result["reference_ml"] for result in results)
    return [
        f"Worst case: {worst['case']}, DSC {worst['dsc']:.3f}, NSD {worst['nsd_3mm']:.3f}; {worst['predicted_ml']:.0f} "
        f"mL where the reference has {worst['reference_ml']:.0f} mL. It finds more than the reference in {too_much} of "
        f"{len(results)} cases.",
        "The bundle holds no pictures; `covidseg segment SCAN --model BUNDLE --truth MASK --preview overlay.png` draws "
        "one.",
    ]


def _cost_lines(training: Mapping[str, Any]) -> list[str]:
    trainings = [training, *training.get("pretraining", [])]
    known = [one["cpu_seconds"] for one in trainings if one.get("cpu_seconds")]
    if not known:
        return ["## Energy", "", "The processor time of the training was not recorded."]
    core_hours = sum(known) / 3600
    missing = len(trainings) - len(known)
    return [
        "## Energy",
        "",
        f"{core_hours:.2g} core-hours of processor time, pre-training included"
        f"{f'; that of {missing} trainings is not known' if missing else ''}. At an assumed {WATTS_A_CORE:g} W a core "
        f"that would be {core_hours * WATTS_A_CORE / 1000:.2g} kWh. This is an assumption: no power was measured, and "
        "what a GPU took, if one was used, is not in it.",
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


def _knows_lung(description: Mapping[str, Any]) -> bool:
    return "infection" in description["classes"] and len(description["classes"]) > 2


def _listed(numbers: Sequence[float]) -> str:
    return ", ".join(f"{number:g}" for number in numbers)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
