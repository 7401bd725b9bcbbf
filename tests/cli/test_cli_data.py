"""`covidseg data`: a set from a server on this machine to verified cases, as a user types it."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from drawn_chest import write_drawn_case
from served_sets import FileServer, serving, write_case, zipped

from covidseg.cli import main
from covidseg_train.datasets import catalog
from covidseg_train.datasets.covid_19_ct_seg_rebuilt import DATASET as REBUILT
from covidseg_train.datasets.dataset import Dataset, Download


def covidseg(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["data", *map(str, arguments)])


@pytest.fixture
def here(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The empty folder, and nothing in the environment that says where data lie or how to reach them."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    for name in ("COVIDSEG_DATA", "COVIDSEG_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    return here


@pytest.fixture
def server(here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    """A server of one archive, whose set is the only one known."""
    write_case(tmp_path / "packed", "a")
    content = zipped(tmp_path / "packed")
    with serving({"cases.zip": content}) as state:
        download = Download(state.url("cases.zip"), "cases.zip", ".", hashlib.sha256(content).hexdigest(), len(content))
        _know(monkeypatch, replace(REBUILT, name="served", downloads=(download,)))
        yield state


def _know(monkeypatch: pytest.MonkeyPatch, dataset: Dataset) -> None:
    monkeypatch.setattr(catalog, "DATASETS", {dataset.name: dataset})


def test_every_set_is_listed_with_licence_and_way_to_get_it(here: Path) -> None:
    result = covidseg("list")
    assert result.exit_code == 0, result.output
    for dataset in catalog.DATASETS.values():
        assert f"{dataset.name}: {dataset.title}" in result.stdout
        assert f"  licence  {dataset.licence}\n" in result.stdout
        assert ("simulated, no patient's lesions" in result.stdout) or not dataset.is_simulated
    assert result.stdout.count("  get  ") >= len(catalog.DATASETS)


def test_cases_below_the_data_root_are_counted(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_case(here / "sets" / REBUILT.name, "a")
    monkeypatch.setenv("COVIDSEG_DATA", "sets")
    entries = {entry["name"]: entry for entry in json.loads(covidseg("list", "--json").stdout)}
    assert set(entries) == set(catalog.DATASETS)
    assert (entries[REBUILT.name]["cases"], entries[REBUILT.name]["folder"]) == (1, f"sets/{REBUILT.name}")
    assert entries["msd-lung-tumour"]["cases"] == 0
    assert f"  here     1 case in sets/{REBUILT.name}\n" in covidseg("list").stdout


def test_fetch_verify_and_fetch_again(server: FileServer, here: Path) -> None:
    result = covidseg("fetch", "served", "--accept-licence")
    assert result.exit_code == 0, result.output
    sha256 = hashlib.sha256(server.files["cases.zip"]).hexdigest()
    assert result.stdout.splitlines() == [
        f"cases.zip: 2 files, sha256 {sha256} (as published)",
        "data/served: 1 case",
    ]
    for text in (REBUILT.licence, REBUILT.citation, f"{len(server.files['cases.zip']):,} bytes"):
        assert text in result.stderr
    verified = covidseg("verify", "served")
    assert (verified.exit_code, verified.stdout) == (0, "data/served: no problems\ndata/served: 1 case\n")
    again = covidseg("fetch", "served")
    assert (again.exit_code, again.stdout) == (0, "data/served: 1 case\n")
    assert len(server.ranges) == 1


def test_without_a_terminal_the_licence_has_to_be_accepted_by_an_option(server: FileServer, here: Path) -> None:
    result = covidseg("fetch", "served")
    assert result.exit_code == 2
    assert result.stderr.endswith("Error: the licence has to be accepted: read it above and add --accept-licence\n")
    assert server.ranges == []
    assert not (here / "data").exists()


def test_on_a_terminal_the_licence_is_asked_for_and_no_is_no(here: Path) -> None:
    terminal, end = pty.openpty()
    os.write(terminal, b"n\n")
    command = [sys.executable, "-m", "covidseg", "data", "fetch", "covid-19-ct-seg"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "COVIDSEG_OFFLINE": "1"}
    try:
        done = subprocess.run(command, stdin=end, capture_output=True, text=True, env=environment, check=False)
    finally:
        os.close(terminal)
        os.close(end)
    assert done.returncode == 2
    assert "Do you accept the licence? [y/N]" in done.stderr
    assert done.stderr.endswith("Error: the licence was not accepted; nothing was fetched\n")


def test_a_set_that_cannot_be_fetched_says_how_to_get_it(here: Path) -> None:
    result = covidseg("fetch", "structseg-2019-gtv", "--accept-licence")
    assert result.exit_code == 2
    assert "Register at https://structseg2019" in result.stderr
    assert result.stderr.endswith("Then: covidseg data import structseg-2019-gtv --from-local FOLDER\n")


def test_an_unknown_set_is_exit_2_with_the_known_ones(here: Path) -> None:
    for command in (["fetch"], ["verify"], ["import", "--from-local", here]):
        result = covidseg(*command, "covid-20")
        assert result.exit_code == 2
        assert "There is no data set 'covid-20'; known are covid-19-ct-seg," in result.stderr


@pytest.mark.parametrize(
    ("broken", "exit_code", "sentence"),
    [
        ({"cut_after": 100}, 1, "ended after 100 of"),
        ({"files": {}}, 1, "answers 404 Not Found"),
        ({"files": {"cases.zip": b"x"}}, 3, "it was changed on the web"),
    ],
)
def test_each_failure_of_the_web_is_one_line(
    server: FileServer, broken: dict[str, object], exit_code: int, sentence: str
) -> None:
    for name, value in broken.items():
        setattr(server, name, value)
    result = covidseg("fetch", "served", "--accept-licence")
    assert result.exit_code == exit_code
    assert sentence in result.stderr.splitlines()[-1]
    assert result.stderr.splitlines()[-1].startswith("Error: ")


def test_the_same_command_goes_on_after_a_stop(server: FileServer) -> None:
    server.cut_after = 100
    assert covidseg("fetch", "served", "--accept-licence").exit_code == 1
    server.cut_after = None
    assert covidseg("fetch", "served", "--accept-licence").exit_code == 0
    assert server.ranges == ["", "bytes=100-"]


def test_offline_is_one_line_and_exit_2(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COVIDSEG_OFFLINE", "1")
    result = covidseg("fetch", "served", "--accept-licence")
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].startswith("Error: COVIDSEG_OFFLINE is set")
    assert server.ranges == []


def test_a_file_without_published_hash_is_called_not_verified(
    server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    (known,) = catalog.DATASETS.values()
    _know(monkeypatch, replace(known, downloads=(replace(known.downloads[0], sha256="", size_bytes=None),)))
    result = covidseg("fetch", "served", "--accept-licence", "-o", "elsewhere")
    sha256 = hashlib.sha256(server.files["cases.zip"]).hexdigest()
    assert f"sha256 {sha256} (not verified: no hash was published, this one is recorded)" in result.stdout
    assert "size not published" in result.stderr
    assert result.stdout.endswith("elsewhere: 1 case\n")


def test_a_folder_of_cases_is_imported_and_a_broken_case_found(here: Path, tmp_path: Path) -> None:
    write_case(tmp_path / "got", "a")
    write_case(tmp_path / "got", "b", slice(2, None))
    result = covidseg("import", REBUILT.name, "--from-local", tmp_path / "got", "--data", "sets")
    assert (result.exit_code, result.stdout) == (0, f"sets/{REBUILT.name}: 2 cases\n"), result.output
    verified = covidseg("verify", REBUILT.name, "--data", "sets")
    assert verified.exit_code == 3
    problem, summary = verified.stdout.splitlines()
    assert problem.startswith("b: b_ct.nii.gz has shape (28, 36, 44)")
    assert summary == f"sets/{REBUILT.name}: 1 problem"


def test_an_archive_is_imported(server: FileServer, here: Path, tmp_path: Path) -> None:
    (tmp_path / "got").mkdir()
    (tmp_path / "got" / "cases.zip").write_bytes(server.files["cases.zip"])
    result = covidseg("import", "served", "--from-local", tmp_path / "got")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("cases.zip: 2 files, sha256 ")
    assert server.ranges == []


def test_a_folder_without_a_case_is_exit_3(here: Path, tmp_path: Path) -> None:
    (tmp_path / "got").mkdir()
    result = covidseg("import", REBUILT.name, "--from-local", tmp_path / "got")
    assert result.exit_code == 3
    assert len(result.stderr.splitlines()) == 1
    assert "brings no case" in result.stderr


def test_verifying_what_is_not_there_is_exit_3(here: Path) -> None:
    result = covidseg("verify", "covid-19-ct-seg")
    assert result.exit_code == 3
    assert result.stdout.splitlines()[0].startswith("data/covid-19-ct-seg holds no case of covid-19-ct-seg. Expected")


def test_options_may_stand_in_the_configuration(server: FileServer, here: Path) -> None:
    (here / "covidseg.toml").write_text('[data.fetch]\naccept-licence = true\noutput = "mine"\n')
    result = covidseg("fetch", "served")
    assert result.exit_code == 0, result.output
    assert result.stdout.endswith("mine: 1 case\n")
    (here / "covidseg.toml").write_text("[data]\ncolour = 1\n")
    assert "[data] colour" in covidseg("list").stderr


def test_data_needs_no_torch(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("covidseg_train")]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("torch", "monai"):
        monkeypatch.setitem(sys.modules, name, None)
    write_case(here / "data" / REBUILT.name, "a")
    assert covidseg("list").exit_code == 0
    assert covidseg("verify", REBUILT.name).exit_code == 0


def test_simulated_cases_are_made_counted_as_such_and_measured(here: Path) -> None:
    host = write_drawn_case(here, "host")
    result = covidseg("simulate", host, "-o", "simulated-infection", "--per-host", 2, "--seed", 7)
    assert result.exit_code == 0, result.output
    assert result.stdout == "simulated-infection: 2 simulated cases\n"
    entries = {entry["name"]: entry for entry in json.loads(covidseg("list", "--data", here, "--json").stdout)}
    assert entries["simulated-infection"]["cases"] == 2
    assert entries["simulated-infection"]["is_simulated"]
    result = covidseg("fingerprint", "simulated-infection", "--data", here, "--case", "simulated_host_2")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].startswith("# simulated-infection, 1 case: median spacing 3×3×3 mm (z, y, x), lesion ")
    assert lines[1:3] == ["[grid]", "spacing_mm = [3, 3, 3]"]
