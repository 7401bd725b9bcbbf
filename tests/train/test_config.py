import json
from dataclasses import replace

import pytest

from covidseg_runtime.errors import SettingsError
from covidseg_train.config import config_from_dict, load_config


@pytest.mark.parametrize("name", ["default", "quick"])
def test_shipped_experiments_load_and_survive_json(name):
    config = load_config(name)
    assert config_from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_default_holds_two_patients_out():
    data = load_config("default").data
    assert set(data.test) == {"coronacases_002", "coronacases_007"}
    assert not set(data.test) & {*data.train, *data.validation}


def test_data_root_is_replaced(tmp_path):
    assert load_config("default", data_root=tmp_path).data.root == str(tmp_path)


def test_unknown_experiment_names_the_shipped_ones():
    with pytest.raises(SettingsError, match="one of: default, permissive, permissive-refined, quick"):
        load_config("nonsense")


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"run": {"epoch": 3}}, r"\[run\] has no epoch; known are seed, epochs"),
        ({"run": {"epochs": 0}}, "must be at least 1"),
        ({"run": {"epochs": "3"}}, "epochs is '3'; a value of type int is expected"),
        ({"run": {"precision": "fp8"}}, "precision is 'fp8'; one of auto, fp32, bf16 fits"),
        ({"patches": {"shape": [80, 80]}}, "shape has 2 entries; 3 are expected"),
        ({"patches": {"shape": [81, 80, 80]}}, "must be a multiple of"),
        ({"optimiser": {"learning_rate": -1.0}}, "positive number"),
        ({"network": {"widths": [8, 8]}}, "2 widths need 1 strides"),
        ({"data": {"dataset": "covid-19-ct-seg-rebuilt", "root": "x", "train": []}}, "data.train is empty"),
        (
            {"data": {"dataset": "covid-19-ct-seg-rebuilt", "root": "x", "train": ["a"], "test": ["a"]}},
            "names a more than once",
        ),
        (
            {
                "data": {"dataset": "covid-19-ct-seg-rebuilt", "root": "x", "train": ["a"], "target": "lesion"},
                "network": {"classes": 2},
                "augmentation": {"opaque_mass_probability": 0.3},
            },
            "data.target 'lesion'; lung_and_lesion is expected",
        ),
    ],
)
def test_contradictions_are_refused_by_name(section, message):
    values = {"name": "x", "data": {"dataset": "covid-19-ct-seg-rebuilt", "root": "x", "train": ["a"]}, **section}
    with pytest.raises(SettingsError, match=message):
        config_from_dict(values)


def test_a_file_that_is_no_toml_is_one_sentence(tmp_path):
    path = tmp_path / "x.toml"
    path.write_text("= 3")
    with pytest.raises(SettingsError, match="is not a TOML file"):
        load_config(path)


def test_an_experiment_extends_another_section_by_section(tmp_path):
    path = tmp_path / "permissive.toml"  # the name of what it extends, in another folder
    path.write_text('extends = "permissive"\n[run]\nepochs = 3\n', encoding="utf-8")
    base, config = load_config("permissive"), load_config(path)
    assert config == replace(base, run=replace(base.run, epochs=3))
    refined = load_config("permissive-refined")
    assert (refined.data, refined.network) == (base.data, base.network)
    assert refined.transfer.checkpoint == "runs/permissive/last.safetensors"


def test_experiments_that_extend_each_other_are_refused(tmp_path):
    first, second = tmp_path / "a.toml", tmp_path / "b.toml"
    first.write_text(f'extends = "{second}"\n', encoding="utf-8")
    second.write_text(f'extends = "{first}"\n', encoding="utf-8")
    with pytest.raises(SettingsError, match="extends itself"):
        load_config(first)
