"""A bundle can be trained on from: train, export, weights, train, export, as a user types them, on a drawn chest."""

import json
import tomllib

import pytest
import torch
from click.testing import CliRunner
from drawn_chest import write_tiny_experiment

from covidseg.cli import main
from covidseg_export.fine_tuning import fine_tuning_experiment
from covidseg_export.source import load_bundle_network
from covidseg_runtime.bundle import load_bundle
from covidseg_runtime.errors import BundleError
from covidseg_train.checkpoint import load_checkpoint, load_weights, read_origin
from covidseg_train.config import config_from_dict
from covidseg_train.distributed import Ranks
from covidseg_train.fit import BEST, fit, start_training, train_step
from covidseg_train.patches import Batch


def covidseg(*arguments):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture(scope="module", params=["instance", "batch", "hybrid"])
def here(request, tmp_path_factory):
    """A folder with a tiny run, its bundle, and the bundle's weights."""
    folder = tmp_path_factory.mktemp(request.param)
    experiment = write_tiny_experiment(folder)
    normalisation = "instance" if request.param == "instance" else "batch"
    text = experiment.read_text("utf-8").replace("[network]", f'[network]\nnormalisation = "{normalisation}"')
    experiment.write_text(text, encoding="utf-8")
    if request.param == "hybrid":
        covidseg("train", experiment, "-o", folder / "source", "--device", "cpu")
        source = folder / "source" / BEST
        experiment.write_text(f'{text}\n[transfer]\nstrategy = "hybrid"\ncheckpoint = "{source}"\n', encoding="utf-8")
    covidseg("train", experiment, "-o", folder / "run", "--device", "cpu")
    covidseg("export", folder / "run", "-o", folder / "bundle", "--force", "--scan", folder / "case_c_ct.nii.gz")
    covidseg("export", folder / "bundle", "--weights", folder / "weights.safetensors")
    return folder


def fine_tuning(here):
    """The card's experiment on the drawn cases, two steps long."""
    values = tomllib.loads("\n".join(fine_tuning_experiment(json.loads((here / "bundle" / "bundle.json").read_text()))))
    tiny = tomllib.loads((here / "tiny.toml").read_text("utf-8"))
    values["data"] = {**tiny["data"], "target": values["data"]["target"]}
    values["run"] |= {"epochs": 1, "steps_per_epoch": 2, "precision": "fp32"}
    values["transfer"]["checkpoint"] = str(here / "weights.safetensors")
    return config_from_dict(values)


def start(here, folder):
    folder.mkdir()
    return start_training(fine_tuning(here), torch.device("cpu"), folder, Ranks())


def test_a_training_starts_as_the_network_of_the_bundle(here, tmp_path):
    training = start(here, tmp_path / "run")
    assert training.transfer.new == ()
    assert training.transfer.skipped == ()
    image = torch.randn(1, 1, 16, 16, 16)
    with torch.no_grad():
        expected = load_bundle_network(load_bundle(here / "bundle")).finest_logits(image)
        torch.testing.assert_close(training.network.eval().finest_logits(image), expected, atol=1e-5, rtol=1e-5)


def test_the_first_step_learns_from_the_answers_of_the_bundle(here, tmp_path):
    """In training mode as well: no statistics of a batch take the place of those that the graph has swallowed."""
    training = start(here, tmp_path / "run")
    images = torch.randn(2, 1, 16, 16, 16)
    with torch.no_grad():
        logits = load_bundle_network(load_bundle(here / "bundle")).finest_logits(images)
    labels = logits.argmax(dim=1, keepdim=True).byte()
    expected = training.loss([logits], labels)
    torch.testing.assert_close(train_step(training, Batch(images, labels, "lesion")), expected, atol=1e-4, rtol=1e-4)


def test_every_weight_trains_and_running_statistics_stand_still(here, tmp_path):
    training = start(here, tmp_path / "run")
    before = {name: value.clone() for name, value in training.network.state_dict().items()}
    train_step(training, Batch(torch.randn(2, 1, 16, 16, 16), torch.ones(2, 1, 16, 16, 16).byte(), "lesion"))
    after = training.network.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name for name, _ in training.network.named_parameters()} <= changed
    assert not changed & {name for name, _ in training.network.named_buffers()}


def test_the_fine_tuned_bundle_knows_what_it_came_from(here, tmp_path):
    fit(fine_tuning(here), tmp_path / "run", device="cpu")
    scan = here / "case_c_ct.nii.gz"
    covidseg("export", tmp_path / "run", "-o", tmp_path / "bundle", "--force", "--scan", scan)
    training = load_bundle(tmp_path / "bundle").card["training"]
    nearest, *earlier = training["pretraining"]
    is_hybrid = fine_tuning(here).transfer.strategy == "hybrid"
    before, now = ("hybrid", "hybrid") if is_hybrid else ("scratch", "continual")
    assert (training["strategy"], training["steps"]) == (now, 2)
    assert (nearest["bundle"], nearest["strategy"], nearest["train"]) == ("tiny 0.2.0", before, ["case_a"])
    assert [one["strategy"] for one in earlier] == (["scratch"] if is_hybrid else [])
    card = (tmp_path / "bundle" / "MODEL_CARD.md").read_text("utf-8")
    assert f"`tiny`, of bundle tiny 0.2.0, strategy `{before}`" in card


def test_weights_say_where_they_come_from_and_are_no_checkpoint(here):
    path = here / "weights.safetensors"
    origin = read_origin(path)
    assert (origin["bundle"], origin["training"]["seed"]) == ("tiny 0.2.0", 0)
    assert read_origin(here / "run" / BEST) is None
    with pytest.raises(BundleError, match="holds weights alone"):
        load_checkpoint(path)


def test_batch_normalisations_come_back_in_place_of_the_biases(here):
    names = load_weights(here / "weights.safetensors").keys()
    assert names == load_weights(here / "run" / BEST).keys()
