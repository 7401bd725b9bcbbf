"""Each strategy takes over exactly what it promises, and trains exactly the rest of what it promises."""

import dataclasses
import json

import pytest
import torch
from drawn_chest import write_tiny_experiment

from covidseg_runtime.errors import SettingsError
from covidseg_train.checkpoint import load_checkpoint
from covidseg_train.config import OptimiserConfig, SourceConfig, TransferConfig, config_from_dict, load_config
from covidseg_train.distributed import Ranks
from covidseg_train.fit import LAST, fit, start_training, train_step, write_checkpoint
from covidseg_train.patches import Batch
from covidseg_train.transfer import build_network
from covidseg_train.unet import UNetSpec

# What the strategies promise, in the words of the paper's reading: part of the new network → part of the source.
PROMISED = {
    "scratch": {},
    "continual": {"encoder": "encoder", "decoder": "decoder", "heads": "heads"},
    "body": {"encoder": "encoder", "decoder": "decoder"},
    "encoder": {"encoder": "encoder"},
    "hybrid": {"adapted_encoder": "encoder"},
}
TRANSFERRING = [strategy for strategy in PROMISED if strategy != "scratch"]
SPEC = UNetSpec(classes=2, widths=(4, 8), strides=((2, 2, 2),), supervised_levels=1)
BATCH_NORM = dataclasses.replace(SPEC, normalisation="batch")


def experiment(network=SPEC, *, seed=0, tasks=("lesion",), **optimiser):
    config = config_from_dict(
        {
            "name": "t",
            "data": {"dataset": "covid-19-ct-seg-rebuilt", "root": "x", "train": ["a"], "target": "lesion"},
            "network": {"classes": 2},
            "run": {"seed": seed, "precision": "fp32"},
        }
    )
    others = tuple(SourceConfig("covid-19-ct-seg-rebuilt", "x", task=task) for task in tasks[1:])
    return dataclasses.replace(
        config,
        network=network,
        data=dataclasses.replace(config.data, task=tasks[0], sources=others),
        optimiser=OptimiserConfig(**{"learning_rate": 0.01, **optimiser}),
    )


def start(config, folder):
    folder.mkdir()
    return start_training(config, torch.device("cpu"), folder, Ranks())


def step(training, task="lesion"):
    generator = torch.Generator().manual_seed(training.progress.step)
    images = torch.randn(2, 1, 8, 8, 8, generator=generator)
    train_step(training, Batch(images, (images > 0.5).byte(), task))


def write_source(folder, config):
    """A checkpoint after two real steps a task; its tensors come back as well."""
    training = start(config, folder)
    for task in config.data.tasks() * 2:
        step(training, task)
    write_checkpoint(training, folder / LAST)
    return folder / LAST, tensors_of(training.average)


def tensors_of(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def with_transfer(config, strategy, checkpoint="", **settings):
    return dataclasses.replace(config, transfer=TransferConfig(strategy, str(checkpoint), **settings))


def promised_source(name, strategy):
    """Name of the source's tensor that a tensor of the new network was promised; None if it stays random."""
    part, _, rest = name.partition(".")
    return f"{PROMISED[strategy][part]}.{rest}" if part in PROMISED[strategy] else None


def names_below(names, parts):
    return {name for name in names if name.partition(".")[0] in parts}


def changed_by(training, steps=1):
    before = tensors_of(training.network)
    for _ in range(steps):
        step(training)
    return {name for name, value in tensors_of(training.network).items() if not torch.equal(value, before[name])}


@pytest.mark.parametrize("network", [SPEC, BATCH_NORM], ids=["instance", "batch"])
@pytest.mark.parametrize("strategy", TRANSFERRING)
def test_exactly_the_promised_tensors_equal_the_source(tmp_path, strategy, network):
    checkpoint, source = write_source(tmp_path / "source", experiment(network, seed=1))
    config = with_transfer(experiment(network), strategy, checkpoint)
    training = start(config, tmp_path / "run")
    torch.manual_seed(config.run.seed)
    fresh = build_network(config).state_dict()
    promised = {name: promised_source(name, strategy) for name in fresh}
    for kept in (training.network, training.average):
        for name, value in kept.state_dict().items():
            expected = source[promised[name]] if promised[name] else fresh[name]
            assert torch.equal(value, expected), name
    assert training.transfer.loaded == tuple(name for name in fresh if promised[name])
    assert training.transfer.new == tuple(name for name in fresh if not promised[name])
    assert sorted(training.transfer.skipped) == sorted(set(source) - set(promised.values()))
    assert training.transfer.frozen == ()


@pytest.mark.parametrize("strategy", PROMISED)
def test_everything_trains_unless_it_is_frozen(tmp_path, strategy):
    checkpoint = write_source(tmp_path / "source", experiment(seed=1))[0] if strategy != "scratch" else ""
    training = start(with_transfer(experiment(), strategy, checkpoint), tmp_path / "run")
    assert changed_by(training) == set(training.network.state_dict())


@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
@pytest.mark.parametrize("network", [SPEC, BATCH_NORM], ids=["instance", "batch"])
@pytest.mark.parametrize("strategy", ["body", "encoder", "hybrid"])
def test_frozen_tensors_never_train_and_all_others_do(tmp_path, strategy, network, optimiser):
    checkpoint, _ = write_source(tmp_path / "source", experiment(network, seed=1))
    config = with_transfer(experiment(network, name=optimiser), strategy, checkpoint, frozen_steps=-1)
    training = start(config, tmp_path / "run")
    names = set(training.network.state_dict())
    frozen = names_below(names, PROMISED[strategy])
    assert set(training.transfer.frozen) == frozen
    assert changed_by(training, steps=2) == names - frozen


@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
@pytest.mark.parametrize("network", [SPEC, BATCH_NORM], ids=["instance", "batch"])
def test_transferred_parts_stand_still_for_the_first_steps_only(tmp_path, network, optimiser):
    checkpoint, _ = write_source(tmp_path / "source", experiment(network, seed=1))
    config = with_transfer(experiment(network, name=optimiser), "hybrid", checkpoint, frozen_steps=2)
    training = start(config, tmp_path / "run")
    names = set(training.network.state_dict())
    assert changed_by(training, steps=2) == names - names_below(names, {"adapted_encoder"})
    assert changed_by(training) == names


def test_running_statistics_stand_still_towards_the_end_and_weights_do_not(tmp_path):
    config = experiment(BATCH_NORM)
    run = dataclasses.replace(config.run, epochs=1, steps_per_epoch=4, still_statistics_after=0.5)
    training = start(dataclasses.replace(config, run=run), tmp_path / "run")
    statistics = {name for name in training.network.state_dict() if ".running_" in name}
    assert statistics <= changed_by(training, steps=2)
    weights = {name for name, _ in training.network.named_parameters()}
    assert changed_by(training, steps=2) == weights


def test_transferred_parts_learn_at_their_own_rate(tmp_path):
    checkpoint, _ = write_source(tmp_path / "source", experiment(seed=1))
    moves = {}
    for factor in (1.0, 0.1):
        config = with_transfer(experiment(weight_decay=0.0), "encoder", checkpoint, rate_factor=factor)
        training = start(config, tmp_path / f"run-{factor}")
        before = tensors_of(training.network)
        step(training)
        moves[factor] = {name: value - before[name] for name, value in tensors_of(training.network).items()}
    for name, move in moves[1.0].items():
        factor = 0.1 if name.startswith("encoder.") else 1.0
        assert torch.allclose(moves[0.1][name], factor * move, rtol=1e-3, atol=1e-7), name


@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
@pytest.mark.parametrize("frozen_steps", [0, 3, -1])
def test_a_resumed_transfer_goes_on_bit_for_bit(tmp_path, optimiser, frozen_steps):
    checkpoint, _ = write_source(tmp_path / "source", experiment(seed=1))
    config = experiment(name=optimiser, ema_decay=0.9)
    config = with_transfer(config, "hybrid", checkpoint, frozen_steps=frozen_steps, rate_factor=0.5)
    training = start(config, tmp_path / "run")
    changed_by(training, steps=2)
    write_checkpoint(training, tmp_path / "run" / LAST)
    resumed = start_training(config, torch.device("cpu"), tmp_path / "run", Ranks())
    assert resumed.progress == training.progress
    for one in (training, resumed):
        changed_by(one, steps=3)
    for kept, other in ((training.network, resumed.network), (training.average, resumed.average)):
        for name, value in kept.state_dict().items():
            assert torch.equal(value, other.state_dict()[name]), name


def test_heads_of_a_multi_task_source_are_averaged_for_continual_learning(tmp_path):
    tasks = ("nodule", "tumour", "effusion")
    checkpoint, source = write_source(tmp_path / "source", experiment(seed=1, tasks=tasks))
    training = start(with_transfer(experiment(), "continual", checkpoint), tmp_path / "run")
    heads = [source[f"{part}.0.weight"] for part in ("heads", "other_heads.tumour", "other_heads.effusion")]
    assert not torch.equal(heads[0], heads[1])
    assert torch.allclose(training.network.heads[0].weight, (heads[0] + heads[1] + heads[2]) / 3)
    assert training.transfer.skipped == ()


def test_the_body_of_a_multi_task_source_comes_without_its_heads(tmp_path):
    checkpoint, source = write_source(tmp_path / "source", experiment(seed=1, tasks=("nodule", "tumour")))
    training = start(with_transfer(experiment(), "body", checkpoint), tmp_path / "run")
    assert set(training.transfer.skipped) == names_below(source, {"heads", "other_heads"})


def test_the_ablation_of_the_fusion_takes_over_the_same_encoder(tmp_path):
    checkpoint, source = write_source(tmp_path / "source", experiment(seed=1))
    config = with_transfer(experiment(), "hybrid", checkpoint, fusion="concatenation")
    training = start(config, tmp_path / "run")
    for name, value in training.network.adapted_encoder.state_dict().items():
        assert torch.equal(value, source[f"encoder.{name}"])
    assert changed_by(training) == set(training.network.state_dict())


@pytest.mark.parametrize("frozen_steps", [0, -1])
@pytest.mark.parametrize("fusion", ["selective", "concatenation"])
def test_a_hybrid_goes_on_from_a_hybrid_whole(tmp_path, fusion, frozen_steps):
    checkpoint, _ = write_source(tmp_path / "source", experiment(seed=1))
    config = with_transfer(experiment(), "hybrid", checkpoint, fusion=fusion)
    hybrid, source = write_source(tmp_path / "hybrid", config)
    config = with_transfer(experiment(), "hybrid", hybrid, fusion=fusion, frozen_steps=frozen_steps)
    training = start(config, tmp_path / "run")
    for name, value in training.network.state_dict().items():
        assert torch.equal(value, source[name]), name
    assert (training.transfer.new, training.transfer.skipped) == ((), ())
    still = names_below(source, {"adapted_encoder"}) if frozen_steps else set()
    assert set(training.transfer.frozen) == still
    assert changed_by(training) == set(source) - still


@pytest.mark.parametrize("strategy", TRANSFERRING)
def test_a_source_of_another_width_is_refused_in_one_sentence(tmp_path, strategy):
    checkpoint, _ = write_source(tmp_path / "source", experiment(dataclasses.replace(SPEC, widths=(6, 8))))
    expected = (
        r"^encoder\.stages\.0\.0\.0\.weight of shape \(4, 1, 3, 3, 3\) was to be transferred and is of shape "
        r"\(6, 1, 3, 3, 3\) in the source; both trainings need the same network\.$"
    )
    with pytest.raises(SettingsError, match=expected):
        start(with_transfer(experiment(), strategy, checkpoint), tmp_path / "run")


def test_a_source_of_another_normalisation_is_refused_in_one_sentence(tmp_path):
    checkpoint, _ = write_source(tmp_path / "source", experiment(SPEC))
    with pytest.raises(SettingsError, match="running_mean of shape .* is missing in the source"):
        start(with_transfer(experiment(BATCH_NORM), "encoder", checkpoint), tmp_path / "run")


def test_hybrid_learning_of_several_tasks_is_refused(tmp_path):
    checkpoint, _ = write_source(tmp_path / "source", experiment(seed=1))
    with pytest.raises(SettingsError, match="The hybrid strategy has one task; data has nodule, tumour"):
        start(with_transfer(experiment(tasks=("nodule", "tumour")), "hybrid", checkpoint), tmp_path / "run")


def test_a_training_prints_and_stores_what_it_took_over(tmp_path, capsys):
    tiny = load_config(write_tiny_experiment(tmp_path))
    data = dataclasses.replace(tiny.data, validation=())
    tiny = dataclasses.replace(tiny, data=data, run=dataclasses.replace(tiny.run, epochs=1, steps_per_epoch=2))
    source = fit(tiny, tmp_path / "source", device="cpu").run_folder / LAST
    capsys.readouterr()
    fit(with_transfer(tiny, "hybrid", source, frozen_steps=-1), tmp_path / "run", device="cpu")
    printed = " ".join(capsys.readouterr().err.split())
    # 3 tensors a block: 12 of an encoder; 2 of up, 6 of the level and 2 of the head are skipped; fusions have 5 each.
    assert "hybrid: 12 tensors loaded, 32 new, 10 of the source skipped, 12 frozen" in printed
    stored = json.loads((tmp_path / "run" / "transfer.json").read_text(encoding="utf-8"))
    assert stored["strategy"] == "hybrid"
    assert stored["source"] == str(source)
    assert stored["loaded"] == stored["frozen"]
    assert {name.partition(".")[0] for name in stored["loaded"]} == {"adapted_encoder"}
    assert {name.partition(".")[0] for name in stored["skipped"]} == {"decoder", "heads"}
    before, after = (load_checkpoint(folder / LAST).part("average") for folder in (source.parent, tmp_path / "run"))
    assert len(stored["loaded"]) + len(stored["new"]) == len(after)
    for name in stored["loaded"]:
        assert torch.equal(after[name], before[name.removeprefix("adapted_")])
