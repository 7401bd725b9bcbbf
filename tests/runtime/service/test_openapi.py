"""The service keeps what its OpenAPI promises: schemathesis asks whatever the description allows, and what it does not.

Longer, by hand: the command below with --max-examples 300, which makes some 4,000 requests.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from service_peers import asking, serving

HERE = Path(__file__).parent
TOKEN = "a-token-for-schemathesis"


def test_the_service_keeps_what_its_description_promises(tmp_path: Path, tiny_bundle: Path) -> None:
    arguments = ("--model", str(tiny_bundle), "--device", "cpu", "--queue", "1000")
    with serving(tmp_path / "service", *arguments, env={"COVIDSEG_SERVE_TOKEN": TOKEN}) as process:
        command = [
            *(str(Path(sys.executable).with_name("schemathesis")), "--config-file", str(HERE / "schemathesis.toml")),
            *("run", f"{process.url}/openapi.json", "--header", f"Authorization: Bearer {TOKEN}"),
            *("--max-examples", "3", "--seed", "1", "--continue-on-failure", "--warnings", "off"),
        ]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "SCHEMATHESIS_HOOKS": "runtime.service.schemathesis_hooks",
        }
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (done.stdout + done.stderr)[-8000:]
        assert "22 selected" in done.stdout
        assert process.end() == 0
    assert "Traceback" not in "".join(process.lines)


def test_the_description_names_every_path_and_the_token(client) -> None:
    description = client.get("/openapi.json").json()
    assert {"/v1/jobs", "/v1/jobs/{job_id}", "/v2/models/{name}/infer", "/health/ready", "/metrics", "/"} <= set(
        description["paths"]
    )
    assert "securitySchemes" not in description["components"]  # this one has no token


@pytest.mark.parametrize(
    ("window", "is_one"),
    [("-1250,250", True), ("-1000,400", True), ("-160,240", True), ("250,-1250", False), ("-1250", False)],
)
def test_the_described_form_of_a_window_is_that_of_windows(client, window: str, is_one: bool) -> None:
    form = client.get("/openapi.json").json()["paths"]["/v1/jobs"]["post"]["requestBody"]["content"]
    described = form["multipart/form-data"]["schema"]["properties"]["window"]
    assert (re.search(described["pattern"], window) is not None) is is_one


def test_what_needs_the_token_says_so(settings, segmenter) -> None:
    with asking(replace(settings, token=TOKEN), segmenter) as client:
        paths = client.get("/openapi.json", headers={"Authorization": f"Bearer {TOKEN}"}).json()["paths"]
    for path, operations in paths.items():
        for operation in operations.values():
            is_open = "/health/" in path
            assert operation["security"] == ([] if is_open else [{"token": []}])
            assert ("401" in operation["responses"]) is not is_open
