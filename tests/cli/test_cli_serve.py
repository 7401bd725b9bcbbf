"""`covidseg serve`: what is refused before anybody is listened to."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner, Result
from service_peers import ServeProcess, serving

from covidseg.cli import main
from covidseg_runtime.service.job_folders import JobFolders


def serve(*arguments: object, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(main, ["serve", *map(str, arguments)], env=env)


@pytest.fixture
def model(tiny_bundle: Path) -> tuple[str, ...]:
    return ("--model", str(tiny_bundle), "--device", "cpu")


def test_a_network_without_a_token_is_refused_in_one_sentence(here: Path) -> None:
    result = serve("--host", "0.0.0.0", "--folder", here / "s")
    assert result.exit_code == 2
    assert result.stderr == (
        "Error: 0.0.0.0 can be reached from a network, and no token is set: give --token-file or COVIDSEG_SERVE_TOKEN, "
        "or listen on 127.0.0.1.\n"
    )
    assert not (here / "s").exists()


def test_a_token_that_is_none_is_refused_and_not_shown(here: Path) -> None:
    (here / "token").write_text("secret")
    for result in (
        serve("--token-file", here / "token", "--folder", here / "s"),
        serve("--folder", here / "s", env={"COVIDSEG_SERVE_TOKEN": "secret"}),
    ):
        assert result.exit_code == 2
        assert "openssl rand -hex 32" in result.stderr
        assert "secret" not in result.stderr
    (here / "token").write_bytes(b"\xff" * 20)
    assert serve("--token-file", here / "token", "--folder", here / "s").exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--tls-cert", __file__), "--tls-cert and --tls-key go together"),
        (("--tls-cert", __file__, "--tls-key", __file__), "are no certificate and its key"),
        (("--queue", "0"), "--queue"),
        (("--keep-hours", "0"), "--keep-hours"),
        (("--token-file", "missing"), "missing"),
        (("--device", "tpu"), "device 'tpu' is unknown"),
    ],
)
def test_options_that_do_not_fit(here: Path, arguments: tuple[str, ...], sentence: str) -> None:
    result = serve("--folder", here / "s", "--port", "0", *arguments)
    assert result.exit_code == 2
    assert sentence in result.stderr


def test_a_port_that_is_taken_is_exit_1(here: Path, model: tuple[str, ...]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = serve("--port", port, "--folder", here / "s", *model)
    assert result.exit_code == 1
    assert f"127.0.0.1:{port} cannot be listened on: Address already in use; give another --port." in result.stderr


def test_a_host_that_is_none_is_exit_1(here: Path, model: tuple[str, ...]) -> None:
    token = {"COVIDSEG_SERVE_TOKEN": "x" * 16}
    result = serve("--host", "nowhere.invalid", "--folder", here / "s", *model, env=token)
    assert (result.exit_code, "give another --host" in result.stderr) == (1, True)


def test_a_missing_model_is_exit_5(here: Path) -> None:
    assert serve("--model", "no-such-model", "--port", "0", "--folder", here / "s").exit_code == 5


def test_a_folder_of_something_else_is_exit_2(here: Path, model: tuple[str, ...]) -> None:
    (here / "thesis.txt").touch()
    result = serve("--port", "0", "--folder", here, *model)
    assert (result.exit_code, "give a folder of its own" in result.stderr) == (2, True)
    assert [path.name for path in here.iterdir()] == ["thesis.txt"]


def test_a_folder_that_another_works_in_is_exit_2(here: Path, model: tuple[str, ...]) -> None:
    with JobFolders(here / "s").held():
        result = serve("--port", "0", "--folder", here / "s", *model)
    assert (result.exit_code, "Another service works in" in result.stderr) == (2, True)


def test_without_the_extra_it_says_what_to_install(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("covidseg_runtime.service.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    result = serve("--folder", here / "s")
    assert result.exit_code == 2
    assert result.stderr.endswith(
        "Answering over HTTP needs uvicorn, which is not installed: pip install 'covidseg[serve]'\n"
    )


def test_the_token_of_a_file_opens_the_door_and_the_folder_has_a_default(here: Path, model: tuple[str, ...]) -> None:
    (here / "token").write_text("a-token-from-a-file\n")
    env = {"HOME": str(here), "XDG_STATE_HOME": "", "COVIDSEG_SERVE_TOKEN": "another-token-of-the-environment"}
    process = ServeProcess("--token-file", str(here / "token"), *model, env=env)
    try:
        shown = {"Authorization": "Bearer a-token-from-a-file"}
        assert httpx.get(f"{process.url}/v1/jobs", headers=shown).status_code == 200
        assert httpx.get(f"{process.url}/v1/jobs").status_code == 401
        assert (here / ".local" / "state" / "covidseg" / "serve" / "queued").is_dir()
    finally:
        assert process.end() == 0
    assert "a-token-from-a-file" not in "".join(process.lines)


def test_the_environment_sets_options_and_the_token(here: Path, model: tuple[str, ...]) -> None:
    env = {"COVIDSEG_SERVE_TOKEN": "a-token-of-the-environment", "COVIDSEG_SERVE_OPEN_METRICS": "1"}
    with serving(here / "s", *model, env=env) as process:
        assert httpx.get(f"{process.url}/v1/jobs").status_code == 401
        assert httpx.get(f"{process.url}/metrics").status_code == 200
