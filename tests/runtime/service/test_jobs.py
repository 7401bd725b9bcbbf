"""A scan is sent, and its results are fetched: what is asked for is done, and nothing else."""

from __future__ import annotations

import io
import json
import shutil
import sys
import time
import zipfile
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import nibabel
import numpy as np
import pytest
from dicom_files import SLICES, series, write
from phantom import HU_OF_LABEL, PHANTOM_SPACING_MM, phantom_labels, spl_affine
from pydicom import dcmread
from service_peers import ROOMY, Asked, asking, exchange, wait_for

from covidseg_runtime import Segmenter, read_volume
from covidseg_runtime.service.jobs import RESULT_FILES

CROP = Path(__file__).parents[2] / "data" / "lidc_0001_crop_ct.nii.gz"


def labels_of(client, job_id: str) -> np.ndarray:
    answer = client.get(f"/v1/jobs/{job_id}/labels")
    assert answer.headers["content-type"] == "application/gzip"
    return np.asarray(nibabel.Nifti1Image.from_bytes(_unzipped(answer.content)).dataobj)


def _unzipped(content: bytes) -> bytes:
    import gzip

    return gzip.decompress(content)


def submitted(client: Asked, scan: bytes, **fields: str) -> dict:
    answer = client.submit(scan, **fields)
    assert answer.status_code == 202, answer.text
    job = answer.json()
    assert answer.headers["location"] == f"/v1/jobs/{job['id']}"
    return job


def test_the_labels_are_the_phantoms(client, scan) -> None:
    job = client.ended(submitted(client, scan)["id"])
    assert job["state"] == "done"
    assert job["tiles"]["done"] == job["tiles"]["total"] > 0
    np.testing.assert_array_equal(labels_of(client, job["id"]), phantom_labels())
    for name in ("report", "preview", "page"):
        assert client.get(job["results"][name]).status_code == 200
    assert client.get(job["results"]["preview"]).content.startswith(b"\x89PNG")
    assert client.get(job["results"]["page"]).content.startswith(b"<!DOCTYPE html>")
    # 20 x 20 x 14 and 16 x 20 x 14 voxels of 2 x 1.5 x 1.5 mm; the infection is within the second.
    report = client.get(job["results"]["report"]).json()
    assert report["measures"]["lung_volume_ml"]["whole"] == pytest.approx((5600 + 4480) * 4.5 / 1000)
    assert report["settings"] == {"min_lesion_ml": 0.05, "quality": "balanced", "window_hu": None}


def test_a_real_scan_gets_what_the_segmenter_gives(settings) -> None:
    with Segmenter.open(device="cpu") as segmenter, asking(settings, segmenter) as client:
        job = client.ended(submitted(client, CROP.read_bytes(), quality="fast", page="false")["id"])
        expected = segmenter.with_settings(replace(segmenter.settings, quality="fast")).segment(read_volume(CROP))
        np.testing.assert_array_equal(labels_of(client, job["id"]), expected.labels)
        assert "page=true" in job["missing"]["page"]


def test_options_reach_the_segmenter(client, scan) -> None:
    # The infection has 6 x 7 x 7 voxels of 4.5 mm3: 1.3 mL.
    job = client.ended(submitted(client, scan, min_lesion_ml="2", quality="best", page="false")["id"])
    without = phantom_labels()
    without[without == 3] = 1
    np.testing.assert_array_equal(labels_of(client, job["id"]), without)
    assert job["options"] == {"quality": "best", "min_lesion_ml": 2.0, "window": None, "page": False}


def test_grey_levels_of_a_window_are_mapped_back(client, tmp_path) -> None:
    low, high = -1000, 200
    levels = np.rint((np.array(HU_OF_LABEL) - low) * 255 / (high - low)).astype(np.uint8)[phantom_labels()]
    levels += np.random.default_rng(0).integers(0, 4, levels.shape, np.uint8)  # 14 HU and less: no label changes
    nibabel.save(nibabel.Nifti1Image(levels, spl_affine(PHANTOM_SPACING_MM)), tmp_path / "levels.nii")
    job = client.ended(submitted(client, (tmp_path / "levels.nii").read_bytes(), window=f"{low},{high}")["id"])
    assert job["options"]["window"] == [low, high]
    assert client.get(job["results"]["report"]).json()["scan"]["window_hu"] == [low, high]
    np.testing.assert_array_equal(labels_of(client, job["id"]), phantom_labels())


def test_a_zip_of_a_series_gets_dicom_objects(client, tmp_path) -> None:
    folder = write(tmp_path / "series", series())
    archive = Path(shutil.make_archive(str(tmp_path / "series"), "zip", folder))
    job = client.ended(submitted(client, archive.read_bytes())["id"])
    assert (job["state"], job["missing"]) == ("done", {})
    with zipfile.ZipFile(io.BytesIO(client.get(job["results"]["dicom"]).content)) as answer:
        assert sorted(answer.namelist()) == ["sc.dcm", "seg.dcm", "sr.dcm"]
        found = dcmread(io.BytesIO(answer.read("seg.dcm")))
    assert found.StudyInstanceUID == series()[0].StudyInstanceUID
    assert len(series()) == SLICES


def test_dicom_objects_tell_the_time_of_the_place(client, tmp_path, monkeypatch) -> None:
    archive = Path(shutil.make_archive(str(tmp_path / "series"), "zip", write(tmp_path / "series", series())))
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "FAR-14")  # 14 hours ahead of UTC: mostly the next day
        time.tzset()
        job = client.ended(submitted(client, archive.read_bytes(), page="false")["id"])
    time.tzset()
    with zipfile.ZipFile(io.BytesIO(client.get(job["results"]["dicom"]).content)) as answer:
        found = dcmread(io.BytesIO(answer.read("seg.dcm")))
    expected = datetime.fromisoformat(job["accepted"]) + timedelta(hours=14)
    assert found.ContentDate + found.ContentTime[:6] == expected.strftime("%Y%m%d%H%M%S")


def test_without_their_extras_there_is_no_page_and_dicom_is_refused(client, scan, tmp_path, monkeypatch) -> None:
    for name in [name for name in sys.modules if name.startswith("covidseg_runtime.pages.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    job = client.ended(submitted(client, scan)["id"])
    assert (job["state"], "page" in job["results"]) == ("done", False)
    assert job["missing"]["page"].endswith("needs jinja2, which this service has not: pip install 'covidseg[report]'.")
    archive = Path(shutil.make_archive(str(tmp_path / "series"), "zip", write(tmp_path / "series", series()[:1])))
    answer = client.submit(archive.read_bytes())
    assert (answer.status_code, "the extra `dicom`" in answer.json()["detail"]) == (415, True)


def test_a_nifti_has_no_dicom_objects_and_says_why(client, scan) -> None:
    job = client.ended(submitted(client, scan)["id"])
    answer = client.get(f"/v1/jobs/{job['id']}/dicom")
    assert answer.status_code == 409
    assert "DICOM series alone" in answer.json()["detail"]


def test_what_cannot_be_segmented_fails_with_the_sentence_and_code_of_the_command(client) -> None:
    image = nibabel.Nifti1Image(np.full((8, 8, 8), 40, np.int16), np.eye(4))
    job = client.ended(submitted(client, image.to_bytes())["id"])
    assert (job["state"], job["error"]["exit_code"], job["results"]) == ("failed", 3, {})
    assert job["error"]["sentence"].startswith("scan.nii holds values from 40 to 40")
    answer = client.get(f"/v1/jobs/{job['id']}/labels")
    assert answer.status_code == 409
    assert answer.json()["detail"] == f"The job failed, so there are no results: {job['error']['sentence']}"


def test_a_scan_is_gone_from_the_disk_when_its_job_has_ended(client, scan, settings) -> None:
    job = client.ended(submitted(client, scan)["id"])
    files = {path.name for path in settings.folder.rglob("*") if path.is_file()}
    made = {RESULT_FILES[name] for name in job["results"]}
    assert files == {"job.json", "covidseg-service.json", "lock", *made}


def test_nothing_of_an_uploads_name_is_kept(client, scan, settings) -> None:
    for name in ("DOE^JOHN.nii.gz", "../../../etc/cron.d/DOE^JOHN", "DOE^JOHN\x00.nii"):
        answer = client.post("/v1/jobs", files={"scan": (name, scan)})
        client.ended(answer.json()["id"])
    names = [str(path) for path in settings.folder.parent.rglob("*")]
    texts = [path.read_bytes() for path in settings.folder.rglob("*.json")]
    assert not any("DOE" in name for name in (*names, *client.lines))
    assert not any(b"DOE" in text for text in texts)


def test_a_damaged_file_of_an_archive_is_told_to_its_sender_and_not_logged(client, tmp_path) -> None:
    folder = write(tmp_path / "series", series())
    whole = min(folder.iterdir()).read_bytes()
    (folder / "DOE^JOHN.dcm").write_bytes(whole[:200])
    archive = Path(shutil.make_archive(str(tmp_path / "series"), "zip", folder))
    job = client.ended(submitted(client, archive.read_bytes())["id"])
    assert "DOE^JOHN.dcm" in job["error"]["sentence"]
    wait_for(lambda: client.lines)
    assert client.lines == [f"{job['id']}: failed: unsuitable scan, its job says why"]


def test_an_idempotency_key_makes_one_job(client, scan) -> None:
    def send(scan: bytes, **fields: str):
        return client.post(
            "/v1/jobs", files={"scan": ("a.nii.gz", scan)}, data=fields, headers={"Idempotency-Key": "key-1"}
        )

    first = send(scan).json()["id"]
    assert (send(scan).status_code, send(scan).json()["id"]) == (202, first)
    assert send(scan, quality="fast").status_code == 409
    other = send(scan + b"\0")
    assert (other.status_code, "another scan" in other.json()["detail"]) == (409, True)
    assert len(client.get("/v1/jobs").json()["jobs"]) == 1
    client.ended(first)
    client.delete(f"/v1/jobs/{first}")
    assert send(scan).json()["id"] != first


def test_jobs_are_listed_newest_first_in_pages(client, scan) -> None:
    made = [submitted(client, scan, page="false")["id"] for _ in range(5)]
    for one in made:
        client.ended(one)
    first = client.get("/v1/jobs", params={"limit": 3}).json()
    second = client.get("/v1/jobs", params={"limit": 3, "after": first["after"]}).json()
    assert [job["id"] for job in (*first["jobs"], *second["jobs"])] == made[::-1]
    assert second["after"] is None
    assert client.get("/v1/jobs", params={"state": "failed"}).json()["jobs"] == []
    assert len(client.get("/v1/jobs", params={"state": "done"}).json()["jobs"]) == 5


def test_a_job_that_waits_or_runs_is_cancelled_and_one_that_ended_is_removed(settings, gated, engine, scan) -> None:
    with asking(settings, gated) as client:
        running, waiting = submitted(client, scan)["id"], submitted(client, scan)["id"]
        assert engine.asked.wait(30)
        status = client.get(f"/v1/jobs/{waiting}").json()
        assert (status["state"], status["ahead"]) == ("queued", 0)
        assert client.get(f"/v1/jobs/{running}/labels").status_code == 409
        answer = client.delete(f"/v1/jobs/{waiting}")
        assert (answer.status_code, answer.json()["state"]) == (200, "cancelled")
        assert 'covidseg_jobs_total{outcome="cancelled"} 1.0' in client.get("/metrics").text
        assert client.delete(f"/v1/jobs/{running}").status_code == 202
        engine.gate.set()
        assert client.ended(running)["state"] == "cancelled"
        assert client.get(f"/v1/jobs/{running}/report").status_code == 409
        assert client.delete(f"/v1/jobs/{running}").status_code == 204
        assert client.get(f"/v1/jobs/{running}").status_code == 410
        assert client.delete(f"/v1/jobs/{running}").status_code == 410
    assert [path.name for path in (settings.folder / "finished").iterdir()] == [waiting]


def test_an_unknown_job_is_404(client) -> None:
    for path in ("0" * 32, "nonsense", "..%2F..%2Fetc"):
        assert client.get(f"/v1/jobs/{path}").status_code == 404
    assert client.get(f"/v1/jobs/{'0' * 32}/labels").status_code == 404
    assert client.delete(f"/v1/jobs/{'0' * 32}").status_code == 404


def test_results_are_removed_when_their_time_is_over(settings, segmenter, scan) -> None:
    with asking(replace(settings, keep_s=0.5), segmenter) as client:
        job = submitted(client, scan, page="false")["id"]
        wait_for(lambda: client.get(f"/v1/jobs/{job}").status_code == 410)
        assert client.get(f"/v1/jobs/{job}/labels").status_code == 410
        wait_for(lambda: client.service.store.used_bytes() == 0)
        assert not any((settings.folder / "finished").iterdir())


def test_a_full_queue_is_429_before_the_body_is_read(settings, gated, engine, scan) -> None:
    limits = replace(ROOMY, queue=2)
    with asking(replace(settings, limits=limits), gated) as client:
        submitted(client, scan)
        assert engine.asked.wait(30)
        accepted = [submitted(client, scan)["id"] for _ in range(2)]
        # Of this body nothing is sent, and the answer comes all the same.
        answer = exchange(
            client.port, "POST /v1/jobs", "Content-Type: multipart/form-data; boundary=b", "Content-Length: 1000"
        )
        assert answer.startswith(b"HTTP/1.1 429 ")
        assert b"\r\nretry-after: " in answer
        assert client.get("/health/ready").status_code == 503
        engine.gate.set()
        for job in accepted:
            assert client.ended(job)["state"] == "done"
        assert client.get("/health/ready").status_code == 200


def test_a_full_disk_is_503_and_not_ready(settings, segmenter, scan) -> None:
    limits = replace(ROOMY, free_bytes=1 << 60)
    with asking(replace(settings, limits=limits), segmenter) as client:
        answer = client.submit(scan)
        assert (answer.status_code, "retry-after" in answer.headers) == (503, True)
        assert "no room" in answer.json()["detail"]
        ready = client.get("/health/ready")
        assert (ready.status_code, ready.json()["reason"]) == (503, "The queue or the disk is full.")
        assert client.get("/health/live").status_code == 200


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"quality": "superb"}, "quality 'superb' is unknown"),
        ({"min_lesion_ml": "-1"}, "min_lesion_ml is -1.0"),
        ({"min_lesion_ml": "nan"}, "min_lesion_ml is 'nan'"),
        ({"window": "-1250"}, "two numbers LOW,HIGH"),
        ({"window": "250,-1250"}, "window"),
        ({"page": "maybe"}, "page is 'maybe'"),
        ({"colour": "red"}, "The part 'colour' is unknown"),
        ({"quality": "x" * 100}, "quality is longer than 64 characters"),
    ],
)
def test_an_option_without_meaning_is_422(client, scan, fields, sentence) -> None:
    answer = client.submit(scan, **fields)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert sentence in answer.json()["detail"]
    assert client.service.store.queue_length() == 0


def test_a_window_is_not_for_dicom(client, tmp_path) -> None:
    folder = write(tmp_path / "series", series())
    archive = Path(shutil.make_archive(str(tmp_path / "series"), "zip", folder))
    answer = client.submit(archive.read_bytes(), window="-1250,250")
    assert (answer.status_code, "grey levels" in answer.json()["detail"]) == (422, True)


@pytest.mark.parametrize("content", [b"", b"x", b"%PDF-1.7", b"\x1f\x8b", b"PK\x05\x06" + bytes(18), bytes(400)])
def test_what_is_no_scan_is_415_at_once(client, content, settings) -> None:
    answer = client.submit(content)
    assert answer.status_code == 415
    assert not any((settings.folder / "incoming").iterdir())


def test_a_body_that_is_no_form_is_refused(client, scan) -> None:
    def send(content: bytes, kind: str) -> int:
        return client.post("/v1/jobs", content=content, headers={"Content-Type": kind}).status_code

    part = b'--b\r\nContent-Disposition: form-data; name="scan"; filename="a"\r\n\r\n' + scan
    form = "multipart/form-data; boundary=b"
    assert send(scan, "application/gzip") == 415
    assert send(scan, "multipart/form-data") == 400
    assert send(b"nonsense", form) == 400
    assert send(part, form) == 400  # without its end
    assert send(b"--b--\r\n", form) == 422
    assert send(part + b"\r\n" + part + b"\r\n--b--\r\n", form) == 422
    assert send(b'--b\r\nContent-Disposition: form-data; name="x"\r\n\r\n1\r\n' * 20 + b"--b--", form) == 422
    assert send(part + b"\r\n--b--\r\n", form) == 202
    assert client.service.store.queue_length() <= 1


def test_an_upload_that_is_too_large_is_413_however_long_it_says_it_is(settings, segmenter, scan) -> None:
    limits = replace(ROOMY, upload_bytes=100_000)
    with asking(replace(settings, limits=limits), segmenter) as client:
        chunks = (bytes(10_000) for _ in range(1000))
        head = b'--b\r\nContent-Disposition: form-data; name="scan"; filename="a"\r\n\r\n'

        def unsaid():
            yield head
            yield from chunks

        form = {"Content-Type": "multipart/form-data; boundary=b"}
        assert client.post("/v1/jobs", content=unsaid(), headers=form).status_code == 413
        assert client.post("/v1/jobs", content=bytes(10**6), headers=form).status_code == 413
        assert (client.service.store.queue_length(), client.service.store.used_bytes()) == (0, 0)
        assert not any((settings.folder / "incoming").iterdir())


def test_a_length_that_is_a_lie_costs_nothing(client) -> None:
    form = "Content-Type: multipart/form-data; boundary=b"
    head = b'--b\r\nContent-Disposition: form-data; name="scan"; filename="a"\r\n\r\n'
    short = exchange(client.port, "POST /v1/jobs", form, f"Content-Length: {len(head)}", body=head + bytes(10**5))
    assert short.startswith(b"HTTP/1.1 400 ")  # its body ended where it said
    long = exchange(client.port, "POST /v1/jobs", form, f"Content-Length: {10**12}", body=head)
    assert long.startswith(b"HTTP/1.1 413 ")
    assert client.get("/health/ready").status_code == 200


def test_metrics_tell_what_happened(client, scan) -> None:
    client.ended(submitted(client, scan, page="false")["id"])
    client.submit(b"nonsense")
    wait_for(lambda: 'outcome="done"} 1.0' in client.get("/metrics").text)  # counted after its end is known
    text = client.get("/metrics").text
    for line in (
        'covidseg_jobs_total{outcome="done"} 1.0',
        'covidseg_http_requests_total{method="POST",route="/v1/jobs",status="202"} 1.0',
        'covidseg_http_requests_total{method="POST",route="/v1/jobs",status="415"} 1.0',
        "covidseg_queue_length 0.0",
        "covidseg_job_seconds_count 1.0",
    ):
        assert line in text
    assert float(text.split("\ncovidseg_http_received_bytes_total ")[1].split()[0]) > len(scan)


def test_the_report_of_a_job_is_that_of_the_command(client, scan) -> None:
    job = client.ended(submitted(client, scan)["id"])
    report = json.loads(client.get(job["results"]["report"]).content)
    assert report["scan"]["file"] == f"{job['id']}.nii.gz"
    assert report["notice"] == "Research use only. Not a medical device."
