"""The card says what bundle.json says, in the form that Hugging Face reads."""

import json
import re
import tomllib

import pytest

from covidseg_export.model_card import write_model_card
from covidseg_export.parity import ParityLimits
from covidseg_runtime.bundle import default_bundle_path, find_bundle
from covidseg_train.config import config_from_dict
from covidseg_train.paired_tests import bootstrap_interval

OWN = {
    "dataset": "COVID-19-CT-Seg, 20 cases",
    "licence": "CC BY-NC-SA 4.0",
    "citation": "Ma 2021",
    "limits": "half of it is no HU",
    "is_simulated": False,
    "task": "lesion",
    "train": ["coronacases_001", "coronacases_003"],
}
EFFUSION = {**OWN, "dataset": "Effusions", "licence": "CC BY-NC 3.0", "citation": "Kiser 2020", "limits": ""}
SIMULATED = {**EFFUSION, "dataset": "Simulated", "licence": "that of the hosts", "is_simulated": True, "train": ["*"]}
RECIPE = {
    "experiment": "study-fold0",
    "validation": ["radiopaedia_14_85914_0_128"],
    "test": ["coronacases_002"],
    "strategy": "continual",
    "seed": 2020,
    "steps": 1500,
    "batch_size": 2,
    "patch_shape": [80, 80, 80],
    "optimiser": "adamw",
    "minutes": 50.0,
    "cpu_seconds": 5400,
}
PRETRAINING = {
    **RECIPE,
    **EFFUSION,
    "checkpoint": "lesions/last.safetensors",
    "at_hand": True,
    "experiment": "study-lesions",
    "strategy": "scratch",
    "seed": 1,
    "steps": 1000,
    "sources": [SIMULATED],
    "cpu_seconds": 1800,
}


def held_out(case, dsc, *, patient=None, predicted_ml=100.0, reference_ml=80.0):
    return {
        "case": case,
        "patient": patient or case,
        "dsc": dsc,
        "nsd_3mm": dsc,
        "predicted_ml": predicted_ml,
        "reference_ml": reference_ml,
    }


def describe(*, results=(), **changes):
    description = json.loads((default_bundle_path() / "bundle.json").read_text("utf-8"))
    description["training"] = {**RECIPE, **OWN, "sources": [], "pretraining": [PRETRAINING]}
    description["metrics"] = {"held_out": list(results)}
    description["commit"] = {"sha": "0123abc", "is_clean": False}
    return {**description, **changes}


def write(description):
    return write_model_card(description, ParityLimits())


def section(card, title):
    """The text below a heading, up to the next."""
    return card.split(f"\n## {title}\n")[1].split("\n## ")[0]


def head(card):
    """The front matter, read as the part of YAML that it uses: `key: value` and lists of `- value`."""
    _, block, _ = card.split("---\n", 2)
    values, key = {}, None
    for line in block.splitlines():
        if line.startswith("- "):
            values[key].append(plain(line.removeprefix("- ")))
        else:
            key, value = re.fullmatch(r"([a-z_]+):(?: (.+))?", line).groups()
            values[key] = plain(value) if value else []
    return values


def plain(value):
    return json.loads(value) if value.startswith('"') else re.fullmatch(r"[\w.-]+", value).group()


def test_the_head_names_licence_task_library_and_every_data_set():
    card = write(describe())
    assert card.startswith("---\n")
    values = head(card)
    assert values["license"] == "cc-by-nc-sa-4.0"
    assert values["pipeline_tag"] == "image-segmentation"
    assert values["library_name"] == "covidseg"
    assert values["datasets"] == ["COVID-19-CT-Seg, 20 cases", "Effusions", "Simulated"]
    assert "dice" in values["metrics"]


def test_the_head_is_what_a_yaml_parser_reads():
    yaml = pytest.importorskip("yaml")
    card = write(describe())
    assert yaml.safe_load(card.split("---\n")[1]) == head(card)


def test_a_licence_that_the_hub_does_not_know_is_another_with_its_name():
    values = head(write(describe(licence="held by the organisers")))
    assert (values["license"], values["license_name"]) == ("other", "held by the organisers")


def test_every_set_stands_with_licence_cases_and_citation_and_simulated_ones_are_called_so():
    card = write(describe())
    trained, before = section(card, "Trained on"), section(card, "Pre-trained on")
    assert "**COVID-19-CT-Seg, 20 cases** (CC BY-NC-SA 4.0). Cases: 2: coronacases_001, coronacases_003" in trained
    assert "Limits: half of it is no HU" in trained
    assert "`study-lesions`, strategy `scratch`, 1000 steps of 2 patches, seed 1" in before
    assert "**Effusions** (CC BY-NC 3.0). Cases: 2: " in before
    assert "**Simulated** (**simulated** by a program, no patient's lesions; that of the hosts). Cases: every" in before
    assert "Cite: Kiser 2020." in before


def test_a_source_that_was_not_at_hand_is_said_not_to_be_known():
    description = describe()
    description["training"]["pretraining"] = [{"checkpoint": "lesions/last.safetensors", "at_hand": False}]
    assert "`lesions/last.safetensors`, which was not at hand" in section(write(description), "Pre-trained on")


def test_the_commit_stands_with_the_recipe():
    assert "commit `0123abc`, with changes that were not committed" in section(write(describe()), "Recipe")
    clean = describe(commit={"sha": "0123abc", "is_clean": True})
    assert "commit `0123abc`.\n" in section(write(clean), "Recipe")
    assert "not recorded" in section(write(describe(commit=None)), "Recipe")


def test_the_interval_is_that_of_the_mean_over_patients():
    results = [
        held_out("a", 0.6),
        held_out("b", 0.7),
        held_out("c1", 0.8, patient="c"),
        held_out("c2", 1.0, patient="c"),
    ]
    lower, upper = bootstrap_interval([0.6, 0.7, 0.9])
    measured = section(write(describe(results=results)), "Measured")
    assert f"- DSC: mean 0.733 over n = 3 patients, 95 % interval {lower:.3f} to {upper:.3f}" in measured
    assert "| c2 | 1.000 | 1.000 | 100 | 80 |" in measured


def test_two_patients_have_no_interval():
    measured = section(write(describe(results=[held_out("a", 0.6), held_out("b", 0.7)])), "Measured")
    assert "- DSC: mean 0.650 over n = 2 patients, too few for an interval." in measured


def test_the_worst_case_is_named_with_its_numbers():
    results = [held_out("a", 0.6, predicted_ml=158, reference_ml=92), held_out("b", 0.7, predicted_ml=10)]
    failures = section(write(describe(results=results)), "Where it fails")
    assert "Worst case: a, DSC 0.600, NSD 0.600; 158 mL where the reference has 92 mL" in failures
    assert "more than the reference in 1 of 2 cases" in failures


def test_a_case_that_picked_the_checkpoint_is_said_to_have():
    chosen, other = held_out("radiopaedia_14_85914_0_128", 0.7), held_out("a", 0.6)
    assert "Of these, radiopaedia_14_85914_0_128 picked" in section(
        write(describe(results=[chosen, other])), "Measured"
    )
    assert "Of these" not in section(write(describe(results=[other])), "Measured")


def test_masses_drawn_into_lungs_are_called_simulated():
    card = write(describe(training={**RECIPE, **OWN, "sources": [], "pretraining": [], "simulated_masses": 0.3}))
    said = "Opaque masses, **simulated** by a program, in the lungs of 30% of the patches"
    assert said in section(card, "Trained on")
    assert "Opaque masses" not in write(describe())


def test_the_card_says_which_weights_it_holds():
    last = describe(training={**RECIPE, **OWN, "sources": [], "pretraining": [], "weights": "last"})
    assert "Experiment: `study-fold0`, its last weights." in section(write(last), "Recipe")
    assert "Experiment: `study-fold0`." in section(write(describe()), "Recipe")


def test_energy_is_core_hours_and_an_assumption():
    energy = section(write(describe()), "Energy")  # 5400 s and 1800 s are two hours; at 10 W 0.02 kWh
    assert energy.strip().startswith("2 core-hours of processor time, pre-training included. At an assumed 10 W a core")
    assert "0.02 kWh. This is an assumption" in energy


def test_forbidden_uses_are_listed_and_commercial_use_is_one_where_the_licence_says_so():
    forbidden = section(write(describe()), "What it must not be used for")
    assert "- Diagnosis, treatment, triage" in forbidden
    assert "- Commercial use" in forbidden
    assert "- Commercial use" not in write(describe(licence="CC BY 4.0"))


def test_the_shipped_bundles_own_description_still_makes_a_card():
    card = write(json.loads((default_bundle_path() / "bundle.json").read_text("utf-8")))
    assert "HU recovered from 8-bit slices" in section(card, "Trained on")
    assert "default-lesions-and-simulated" in section(card, "Pre-trained on")
    assert "core-hours" in section(card, "Energy")


@pytest.mark.parametrize("normalisation", ["instance", "batch"])
def test_the_experiment_of_the_card_is_one_and_keeps_held_out_patients_held_out(normalisation):
    description = describe()
    description["network"]["normalisation"] = normalisation
    code = re.search(r"```toml\n(.*?)```", write(description), re.DOTALL).group(1)
    config = config_from_dict(tomllib.loads(code))
    assert config.data.train == ("coronacases_001", "coronacases_003")
    assert config.data.validation == ("radiopaedia_14_85914_0",)
    assert config.data.test == ("coronacases_002",)
    assert config.network.widths == tuple(description["network"]["widths"])
    assert config.tiles.plan().importance_sigma == description["tile_plan"]["importance_sigma"]
    assert config.run.still_statistics_after == (0.0 if normalisation == "batch" else 1.0)


def test_a_network_that_no_training_takes_over_is_not_offered():
    description = describe()
    description["network"]["architecture"] = "FoldEnsemble"
    assert "Not possible from this bundle" in write(description)


def test_fine_tuning_of_a_hybrid_stays_a_hybrid_with_its_fusion():
    description = describe()
    description["network"] |= {"architecture": "HybridEncoderUNet", "fusion": "concatenation"}
    (block,) = re.findall(r"```toml\n(.*?)```", write(description), re.DOTALL)
    transfer = tomllib.loads(block)["transfer"]
    assert transfer == {"strategy": "hybrid", "fusion": "concatenation", "checkpoint": "weights.safetensors"}


@pytest.mark.parametrize("name", ["default", "permissive"])
def test_a_shipped_card_is_what_its_bundle_says_and_credits_whose_scans_were_drawn_into(name):
    folder = find_bundle(name)
    description = json.loads((folder / "bundle.json").read_text("utf-8"))
    card = (folder / "MODEL_CARD.md").read_text("utf-8")
    assert card == write_model_card(description, ParityLimits())
    assert "Drawn into scans of LIDC-IDRI, whole scans (CC BY 3.0). Cite: Armato et al." in section(card, "Trained on")
