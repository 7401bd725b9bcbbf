"""A bundle knows every training that its weights went through, and the commit of the source."""

import dataclasses

from covidseg_export.provenance import describe_set, describe_training
from covidseg_train.checkpoint import Progress, load_checkpoint, save_checkpoint, save_weights
from covidseg_train.config import SourceConfig, TransferConfig, load_config
from covidseg_train.transfer import build_network


def write_run(folder, name, *, source=None, train=("a",), others=()):
    """A checkpoint of 7 steps and 30 s that started from another one."""
    config = load_config("quick")
    transfer = TransferConfig("continual", str(source)) if source else TransferConfig()
    data = dataclasses.replace(config.data, train=train, sources=others)
    config = dataclasses.replace(config, name=name, data=data, transfer=transfer)
    path = folder / name / "last.safetensors"
    path.parent.mkdir()
    weights = {"network": build_network(config).state_dict()}
    save_checkpoint(path, config, Progress(7, None, 60.0, 30.0), parts=weights)
    return path


def test_the_chain_of_trainings_is_followed_to_its_beginning(tmp_path):
    simulated = SourceConfig("simulated-infection", str(tmp_path), task="simulated")
    first = write_run(tmp_path, "first", train=("b", "c"), others=(simulated,))
    second = write_run(tmp_path, "second", source=first)
    training = describe_training(load_checkpoint(write_run(tmp_path, "third", source=second)))
    assert training["experiment"] == "third"
    assert [one["experiment"] for one in training["pretraining"]] == ["second", "first"]
    beginning = training["pretraining"][1]
    assert beginning["train"] == ["b", "c"]
    assert (beginning["strategy"], beginning["steps"], beginning["seed"]) == ("scratch", 7, 1)
    assert beginning["cpu_seconds"] == 30
    (other,) = beginning["sources"]
    assert other["is_simulated"]
    assert other["licence"] == "that of the host scans"


def test_no_folder_of_this_machine_is_told(tmp_path):
    others = (SourceConfig("collected-effusion", str(tmp_path), ("d",), "effusion"),)
    first = write_run(tmp_path, "first", others=others)
    training = describe_training(load_checkpoint(write_run(tmp_path, "second", source=first, others=others)))
    assert str(tmp_path) not in str(training)
    assert training["pretraining"][0]["checkpoint"] == "first/last.safetensors"


def test_a_source_that_is_gone_is_not_at_hand(tmp_path):
    first = write_run(tmp_path, "first")
    second = write_run(tmp_path, "second", source=first)
    first.unlink()
    training = describe_training(load_checkpoint(second))
    assert training["pretraining"] == [{"checkpoint": "first/last.safetensors", "at_hand": False}]


def test_weights_of_a_bundle_say_what_they_learned_from(tmp_path):
    origin = {
        "experiment": "old",
        "dataset": "D",
        "train": ["x"],
        "pretraining": [{"checkpoint": "y", "at_hand": False}],
    }
    weights = tmp_path / "weights.safetensors"
    save_weights(weights, build_network(load_config("quick")).state_dict(), {"bundle": "b 1.0", "training": origin})
    nearest, earlier = describe_training(load_checkpoint(write_run(tmp_path, "run", source=weights)))["pretraining"]
    assert (nearest["bundle"], nearest["experiment"], nearest["train"]) == ("b 1.0", "old", ["x"])
    assert "pretraining" not in nearest
    assert earlier == {"checkpoint": "y", "at_hand": False}


def test_all_cases_are_those_that_lie_there(tmp_path):
    for name in ("simulated_h_1", "simulated_h_2"):
        (tmp_path / f"{name}_ct.nii.gz").touch()
        (tmp_path / f"{name}_infection.nii.gz").touch()
    assert describe_set(SourceConfig("simulated-infection", str(tmp_path)))["train"] == [
        "simulated_h_1",
        "simulated_h_2",
    ]
    assert describe_set(SourceConfig("simulated-infection", str(tmp_path / "none")))["train"] == ["*"]


def test_simulated_cases_name_whose_scans_they_were_drawn_into(tmp_path):
    names = ("simulated_LIDC-IDRI-0001_1", "simulated_LUNG1-005_12", "simulated_113_HM10395_phase40_1", "simulated_h_1")
    described = describe_set(SourceConfig("simulated-infection", str(tmp_path), train=names))
    assert [(host["dataset"], host["licence"]) for host in described["hosts"]] == [
        ("LIDC-IDRI, whole scans", "CC BY 3.0"),
        ("NSCLC-Radiomics, gross tumour volume", "CC BY-NC 3.0"),
        ("4D-Lung, tumour", "CC BY 3.0"),
    ]
    assert describe_set(SourceConfig("simulated-infection", str(tmp_path), train=("simulated_h_1",)))["hosts"] == []
    assert "hosts" not in describe_set(SourceConfig("covid-19-ct-seg", str(tmp_path)))
