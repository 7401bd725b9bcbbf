"""MODEL_CARD.md, written from the same values as bundle.json."""

from collections.abc import Mapping, Sequence
from typing import Any

INTENDED_USE = (
    "Research on the segmentation of COVID-19-like opacities in chest CT. Not a medical device; not for diagnosis, "
    "treatment or triage. An opacity is not specific to COVID-19: other pneumonias, tumours and effusions look alike."
)


def write_model_card(description: Mapping[str, Any]) -> str:
    """Write the card of a bundle description (the content of bundle.json) as Markdown."""
    training, network = description["training"], description["network"]
    return "\n".join(
        [
            f"# {description['name']} {description['version']}",
            "",
            "Segments left lung, right lung and infection in chest CT. **Research use only.**",
            "",
            "## Licence",
            "",
            f"Weights: {description['licence']}, because of the training data. Code: Apache-2.0.",
            "",
            "## Trained on",
            "",
            f"{training['dataset']} ({training['licence']}): {', '.join(training['train'])}.",
            f"Cases that picked the checkpoint: {', '.join(training['validation']) or 'none'}.",
            f"Held out, never read while training: {', '.join(training['test']) or 'none'}.",
            "",
            "The slices were 8-bit; HU were recovered by calibration (about ±25 HU), the in-plane resolution is half "
            "the original, infection masks come from a 128×128 grid. DSC and NSD are therefore not comparable to the "
            "point with published tables. Lung labels were made from the CT by rules (threshold and fill), "
            "united with the infection; no reader drew them.",
            "",
            f"Cite: {training['citation']}.",
            "",
            "## Recipe",
            "",
            f"3D U-Net, {network['parameters']:,} parameters, widths {network['widths']}, patch "
            f"{training['patch_shape']}, {training['steps']} steps of {training['batch_size']} patches, "
            f"{training['optimiser']}, strategy `{training['strategy']}`, seed {training['seed']}; "
            f"{training['minutes']} minutes of training. Command: `covidseg train {training['experiment']}`.",
            "",
            "## Measured",
            "",
            *_held_out_lines(description["metrics"]["held_out"]),
            "",
            "## Parity with torch, on a real scan through the runtime's tiling",
            "",
            f"Scan: {description['parity']['scan']}.",
            "",
            *_parity_lines(description["parity"]["engines"]),
            "",
            "## Intended use, and what it must not be used for",
            "",
            description["intended_use"],
            "",
            "Few training cases, one population, no contrast-enhanced scans with COVID-19: expect misses of faint "
            "ground glass, and false positives in effusions, tumours, atelectasis and other pneumonias.",
            "",
        ]
    )


def _held_out_lines(results: Sequence[Mapping[str, Any]]) -> list[str]:
    if not results:
        return ["No patient was held out, so nothing is known about quality."]
    mean = sum(result["dsc"] for result in results) / len(results)
    return [
        f"Infection on {len(results)} held-out patients, whole runtime, scan's own grid; mean DSC {mean:.3f}.",
        "",
        "| case | DSC | NSD (3 mm) | model, mL | reference, mL |",
        "|---|---|---|---|---|",
        *(
            f"| {r['case']} | {r['dsc']:.3f} | {r['nsd_3mm']:.3f} | {r['predicted_ml']:.0f} | {r['reference_ml']:.0f} |"
            for r in results
        ),
    ]


def _parity_lines(engines: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return [
        "| engine | precision | max abs. logit difference | mean | flipped voxels | Dice of infection |",
        "|---|---|---|---|---|---|",
        *(
            f"| {e['engine']} | {e['precision']} | {e['max_logit_difference']:.1e} | {e['mean_logit_difference']:.1e} "
            f"| {e['flipped_voxels']} of {e['voxels']:,} | {_number(e['infection_dice'])} |"
            for e in engines.values()
        ),
    ]


def _number(value: float | None) -> str:
    return "none found" if value is None else f"{value:.6f}"
