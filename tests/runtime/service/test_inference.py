"""KServe v2: the engine's output, bit by bit, for NVIDIA's client and for anyone who writes JSON."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http as triton
from phantom import pointwise_logits
from service_peers import ROOMY, Asked, asking, exchange
from tritonclient.utils import InferenceServerException

from covidseg_export.triton import read_tensors
from covidseg_runtime import Segmenter
from covidseg_runtime.bundle import load_bundle
from covidseg_runtime.engines.fake_engine import PointwiseEngine

SHAPE = [1, 1, 16, 16, 16]
INFER = "/v2/models/tiny-fp32/infer"


def tiles_of(count: int, shape: tuple[int, ...] = (16, 16, 16)) -> np.ndarray:
    return np.random.default_rng(count).normal(size=(count, 1, *shape)).astype(np.float32)


def asked_by_triton(client: Asked, model: str, tiles: np.ndarray, *, binary: bool, **more: str) -> np.ndarray:
    peer = triton.InferenceServerClient(f"127.0.0.1:{client.port}")
    try:
        given = triton.InferInput("tiles", list(tiles.shape), "FP32")
        given.set_data_from_numpy(tiles, binary_data=binary)
        wanted = [triton.InferRequestedOutput("logits", binary_data=binary)]
        return peer.infer(model, [given], outputs=wanted, **more).as_numpy("logits")
    finally:
        peer.close()


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("count", [1, 3])
def test_tritons_client_gets_the_engines_output(client, segmenter, binary: bool, count: int) -> None:
    tiles = tiles_of(count)
    found = asked_by_triton(client, "tiny-fp32", tiles, binary=binary)
    np.testing.assert_array_equal(found, segmenter.engine.predict(tiles))
    np.testing.assert_array_equal(found, pointwise_logits(tiles))


def test_tritons_client_gets_the_shipped_networks_output(settings) -> None:
    with Segmenter.open(device="cpu") as segmenter, asking(settings, segmenter) as client:
        precision = {"f32": "fp32", "bf16": "fp32", "f16": "fp16", "int8": "int8"}[segmenter.engine.precision]
        tiles = tiles_of(1, segmenter.bundle.tile_plan.tile_shape)
        found = asked_by_triton(client, f"default-{precision}", tiles, binary=True, model_version="1", request_id="7")
        np.testing.assert_array_equal(found, segmenter.engine.predict(tiles))


def test_names_shapes_and_types_are_the_graphs(client, tiny_bundle: Path) -> None:
    tiles, logits = read_tensors(tiny_bundle / "model.onnx")
    told = client.get("/v2/models/tiny-fp32").json()
    for kind, tensor in (("inputs", tiles), ("outputs", logits)):
        (one,) = told[kind]
        assert (one["name"], f"TYPE_{one['datatype']}") == (tensor.name, tensor.data_type)
        assert one["shape"] == [-1, *tensor.dims]
    assert client.get("/v2/models/tiny-fp32/versions/1").json() == told


def test_tritons_client_asks_after_the_server(client) -> None:
    peer = triton.InferenceServerClient(f"127.0.0.1:{client.port}")
    assert peer.is_server_live()
    assert peer.is_server_ready()
    assert peer.is_model_ready("tiny-fp32")
    assert peer.is_model_ready("tiny-fp32", "1")
    assert not peer.is_model_ready("other")
    assert not peer.is_model_ready("tiny-fp32", "2")
    told = peer.get_server_metadata()
    assert (told["models"], "binary_tensor_data" in told["extensions"]) == (["tiny-fp32"], True)
    with pytest.raises(InferenceServerException, match="There is no such model"):
        peer.get_model_metadata("other")
    peer.close()


def request(tiles: np.ndarray, **changes) -> dict:
    tensor = {"name": "tiles", "datatype": "FP32", "shape": list(tiles.shape), "data": tiles.ravel().tolist()}
    return {"inputs": [{**tensor, **changes}]}


def test_json_may_be_nested_and_is_answered_without_asking(client) -> None:
    tiles = tiles_of(2)
    for data in (tiles.ravel().tolist(), tiles.tolist()):
        answer = client.post(INFER, json={"id": "a", **request(tiles, data=data)}).json()
        (output,) = answer["outputs"]
        assert (answer["id"], answer["model_name"], output["shape"]) == ("a", "tiny-fp32", [2, 4, 16, 16, 16])
        found = np.array(output["data"], np.float32).reshape(output["shape"])
        np.testing.assert_array_equal(found, pointwise_logits(tiles))


ONE = tiles_of(1)


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"", "no JSON"),
        (b"[" * 5000, "no JSON"),
        (b"[" * 100_000, "holds more than any request"),
        (b"{" * 100, "holds more than any request"),
        (b"[" + b"0," * 200_000 + b"0]", "holds more than any request"),
        (b"\xff", "no JSON"),
        (b'{"inputs": NaN}', "no JSON"),
        (b"[1]", "a JSON object is expected"),
        ({}, "inputs must be a list of one tensor"),
        ({"inputs": [1]}, "inputs must be a list of one tensor"),
        ({"inputs": request(ONE)["inputs"] * 2}, "inputs must be a list of one tensor"),
        (request(ONE, name="other"), "another tensor than 'tiles'"),
        (request(ONE, datatype="FP64"), "must be FP32"),
        (request(ONE, shape=[1, 1, 16, 16, 17]), "the shape of 'tiles' must be"),
        (request(ONE, shape=[5, 1, 16, 16, 16]), "N from 1 to 4"),
        (request(ONE, shape=[0, 1, 16, 16, 16]), "N from 1 to 4"),
        (request(ONE, shape=[True, 1, 16, 16, 16]), "the shape of 'tiles' must be"),
        (request(ONE, shape="1"), "the shape of 'tiles' must be"),
        (request(ONE, data=[1.0]), "data must hold 4096 finite numbers"),
        (request(ONE, data=[1e300] * 4096), "finite numbers"),
        (request(ONE, data=["a"] * 4096), "finite numbers"),
        (request(ONE, data=[None] * 4096), "finite numbers"),
        (request(ONE, data=[[1, 2], [3]]), "finite numbers"),
        (request(ONE, data=[10**400] * 4096), "finite numbers"),
        (request(ONE, data={}), "finite numbers"),
        (request(ONE, parameters=1), "parameters must be an object"),
        (request(ONE, parameters={"binary_data_size": 4}), "binary_data_size must be 16384"),
        (request(ONE, parameters={"shared_memory_region": "x"}), "shared_memory_region is not supported"),
        ({**request(ONE), "id": 5}, "id must be a text"),
        ({**request(ONE), "parameters": []}, "parameters must be an object"),
        ({**request(ONE), "parameters": {"binary_data_output": 1}}, "binary_data_output must be true or false"),
        ({**request(ONE), "outputs": [{"name": "other"}]}, "outputs holds another tensor"),
        (
            {**request(ONE), "outputs": [{"name": "logits", "parameters": {"classification": 3}}]},
            "classification is not supported",
        ),
    ],
)
def test_what_is_no_request_is_told_in_a_sentence(shared: Asked, body, sentence: str) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = shared.post(INFER, content=content)
    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/problem+json"
    assert sentence in answer.json()["error"]


@pytest.mark.parametrize("length", ["x", "-1", "0", "999999", "9" * 5000, "1e2"])
def test_a_header_length_that_is_none_is_400(shared: Asked, length: str) -> None:
    answer = shared.post(INFER, content=b"{}", headers={"Inference-Header-Content-Length": length})
    assert answer.status_code == 400


def test_bytes_that_do_not_fit_are_400(shared: Asked) -> None:
    tensor = {"name": "tiles", "datatype": "FP32", "shape": SHAPE, "parameters": {"binary_data_size": 16384}}
    header = json.dumps({"inputs": [tensor]}).encode()
    plain = json.dumps(request(ONE)).encode()
    for head, binary in ((header, bytes(16380)), (header, bytes(16388)), (header, b""), (plain, bytes(16))):
        length = {"Inference-Header-Content-Length": str(len(head))}
        assert shared.post(INFER, content=head + binary, headers=length).status_code == 400
    good = shared.post(
        INFER, content=header + bytes(16384), headers={"Inference-Header-Content-Length": str(len(header))}
    )
    assert good.status_code == 200


def test_a_compressed_body_is_415(shared: Asked) -> None:
    assert shared.post(INFER, content=b"{}", headers={"Content-Encoding": "gzip"}).status_code == 415


def test_logits_that_are_not_finite_are_told_as_bytes_alone(settings, tiny_bundle) -> None:
    endless = PointwiseEngine(lambda tiles: np.full_like(pointwise_logits(tiles), np.inf))
    with asking(settings, Segmenter(load_bundle(tiny_bundle), endless)) as client:
        assert client.post(INFER, json=request(ONE)).status_code == 400
        np.testing.assert_array_equal(asked_by_triton(client, "tiny-fp32", ONE, binary=True), endless.predict(ONE))


def test_a_body_that_is_too_large_is_413(settings, segmenter) -> None:
    with asking(replace(settings, limits=replace(ROOMY, infer_bytes=1000)), segmenter) as client:
        assert client.post(INFER, content=bytes(1001)).status_code == 413
        assert client.post(INFER, content=(bytes(100) for _ in range(100))).status_code == 413


def test_too_many_at_a_time_are_429_before_the_body_is_read(settings, gated, engine) -> None:
    with asking(replace(settings, limits=replace(ROOMY, infers=1)), gated) as client:
        answers = []
        thread = threading.Thread(target=lambda: answers.append(client.post(INFER, json=request(ONE))))
        thread.start()
        assert engine.asked.wait(30)
        answer = exchange(client.port, f"POST {INFER}", "Content-Length: 1000")
        assert answer.startswith(b"HTTP/1.1 429 ")
        assert b"retry-after: 1" in answer
        engine.gate.set()
        thread.join(60)
        assert answers[0].status_code == 200
        for _ in range(3):  # the place is given back, after errors as well
            assert client.post(INFER, content=b"nonsense").status_code == 400
        assert client.post(INFER, json=request(ONE)).status_code == 200


def test_jobs_and_requests_take_turns(settings, gated, engine, scan) -> None:
    with asking(settings, gated) as client:
        job = client.submit(scan, page="false").json()["id"]
        assert engine.asked.wait(30)
        answers = []
        thread = threading.Thread(target=lambda: answers.append(client.post(INFER, json=request(ONE))))
        thread.start()
        engine.gate.set()
        thread.join(60)
        assert answers[0].status_code == 200
        assert client.ended(job)["state"] == "done"
