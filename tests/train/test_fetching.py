"""Data sets fetched from a server on this machine, imported from its disk, and verified."""

from __future__ import annotations

import fcntl
import hashlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from served_sets import FileServer, serving, write_case, zipped

from covidseg_runtime.errors import OutputError, SettingsError
from covidseg_train.datasets import fetching
from covidseg_train.datasets.covid_19_ct_seg_rebuilt import DATASET as REBUILT
from covidseg_train.datasets.dataset import Dataset, Download
from covidseg_train.datasets.downloading import DownloadError, Listener
from covidseg_train.datasets.fetching import (
    FetchedFile,
    fetch_dataset,
    find_problems,
    import_local,
    missing_downloads,
    read_record,
)
from covidseg_train.datasets.unpacking import ArchiveError

CONTENT = np.random.default_rng(0).bytes(1_000_000)  # four pieces of a download
NAME = "table.bin"
SILENT = Listener(say=lambda line: None, progress=lambda name, done, total: None)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    """A server of one file, reached without a proxy."""
    monkeypatch.setenv("no_proxy", "127.0.0.1,127.0.0.2")
    monkeypatch.delenv("COVIDSEG_OFFLINE", raising=False)
    with serving({NAME: CONTENT}) as state:
        yield state


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def of_downloads(*downloads: Download) -> Dataset:
    return replace(REBUILT, name="served", downloads=downloads)


def table(server: FileServer, **changes: object) -> Dataset:
    """A set of one file that is kept as it is."""
    download = Download(server.url(NAME), NAME, sha256=sha256(CONTENT), size_bytes=len(CONTENT))
    return of_downloads(replace(download, **changes))  # type: ignore[arg-type]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


# From the web


def test_a_file_is_fetched_checked_and_written_down(tmp_path: Path, server: FileServer) -> None:
    seen: list[tuple[str, int, int | None]] = []
    listener = Listener(say=lambda line: None, progress=lambda name, done, total: seen.append((name, done, total)))
    (fetched,) = fetch_dataset(table(server), tmp_path, listener)
    assert fetched == FetchedFile(NAME, sha256(CONTENT), True, {NAME: len(CONTENT)})
    assert (tmp_path / NAME).read_bytes() == CONTENT
    assert names(tmp_path) == [fetching.RECORD_FILE, NAME]
    assert read_record(tmp_path) == {NAME: fetched}
    assert seen[-1] == (NAME, len(CONTENT), len(CONTENT))


def test_what_is_there_is_not_fetched_again_and_what_was_lost_is(tmp_path: Path, server: FileServer) -> None:
    dataset = table(server)
    fetch_dataset(dataset, tmp_path, SILENT)
    assert missing_downloads(dataset, tmp_path) == ()
    assert fetch_dataset(dataset, tmp_path, SILENT) == ()
    assert len(server.ranges) == 1
    (tmp_path / NAME).unlink()
    assert missing_downloads(dataset, tmp_path) == dataset.downloads
    fetch_dataset(dataset, tmp_path, SILENT)
    assert (tmp_path / NAME).read_bytes() == CONTENT


def test_a_broken_connection_is_gone_on_from(tmp_path: Path, server: FileServer) -> None:
    server.cut_after = 400_000
    with pytest.raises(DownloadError, match=r"400,000 of 1,000,000 bytes; the same command goes on from there\.$"):
        fetch_dataset(table(server), tmp_path, SILENT)
    assert (tmp_path / f"{NAME}.part").read_bytes() == CONTENT[:400_000]
    assert NAME not in names(tmp_path)
    server.cut_after = None
    fetch_dataset(table(server), tmp_path, SILENT)
    assert (tmp_path / NAME).read_bytes() == CONTENT
    assert server.ranges == ["", "bytes=400000-"]
    assert names(tmp_path) == [fetching.RECORD_FILE, NAME]


def test_a_server_that_knows_no_ranges_sends_all_again(tmp_path: Path, server: FileServer) -> None:
    (tmp_path / f"{NAME}.part").write_bytes(CONTENT[:300_000])
    server.knows_ranges = False
    fetch_dataset(table(server), tmp_path, SILENT)
    assert server.ranges == ["bytes=300000-"]
    assert (tmp_path / NAME).read_bytes() == CONTENT


def test_a_file_that_changed_on_the_web_meanwhile_is_fetched_anew(tmp_path: Path, server: FileServer) -> None:
    dataset = table(server, sha256="", size_bytes=None)
    server.etag, server.cut_after = '"first"', 500_000
    with pytest.raises(DownloadError):
        fetch_dataset(dataset, tmp_path, SILENT)
    newer = CONTENT[::-1]
    server.files[NAME], server.etag, server.cut_after = newer, '"second"', None
    fetch_dataset(dataset, tmp_path, SILENT)
    assert server.ranges == ["", "bytes=500000-"]
    assert (tmp_path / NAME).read_bytes() == newer


def test_without_hash_and_version_no_two_pieces_are_joined(tmp_path: Path, server: FileServer) -> None:
    (tmp_path / f"{NAME}.part").write_bytes(b"of another file")
    fetch_dataset(table(server, sha256="", size_bytes=None), tmp_path, SILENT)
    assert server.ranges == [""]
    assert (tmp_path / NAME).read_bytes() == CONTENT


def test_a_part_that_is_longer_than_the_file_is_begun_anew(tmp_path: Path, server: FileServer) -> None:
    (tmp_path / f"{NAME}.part").write_bytes(CONTENT + b"more")
    fetch_dataset(table(server), tmp_path, SILENT)
    assert server.ranges == [f"bytes={len(CONTENT) + 4}-", ""]
    assert (tmp_path / NAME).read_bytes() == CONTENT


def test_a_server_that_sends_another_part_than_was_asked_for_is_asked_once_more(
    tmp_path: Path, server: FileServer
) -> None:
    (tmp_path / f"{NAME}.part").write_bytes(CONTENT[:300_000])
    server.always_from = 1000
    with pytest.raises(DownloadError, match="answers with a part where the whole file was asked for"):
        fetch_dataset(table(server), tmp_path, SILENT)
    assert server.ranges == ["bytes=300000-", ""]
    assert names(tmp_path) == []


def test_a_whole_part_needs_no_server(tmp_path: Path, server: FileServer) -> None:
    (tmp_path / f"{NAME}.part").write_bytes(CONTENT)
    fetch_dataset(table(server), tmp_path, SILENT)
    assert server.ranges == []
    assert names(tmp_path) == [fetching.RECORD_FILE, NAME]


def test_a_wrong_hash_is_one_sentence_and_the_next_call_begins_anew(tmp_path: Path, server: FileServer) -> None:
    server.files[NAME] = CONTENT[::-1]
    with pytest.raises(ArchiveError, match=rf"has sha256 {sha256(CONTENT[::-1])}, expected .* is kept as .*\.wrong"):
        fetch_dataset(table(server), tmp_path, SILENT)
    assert names(tmp_path) == [f"{NAME}.part.version", f"{NAME}.wrong"]
    assert read_record(tmp_path) == {}
    server.files[NAME] = CONTENT
    fetch_dataset(table(server), tmp_path, SILENT)
    assert server.ranges == ["", ""]
    assert (tmp_path / NAME).read_bytes() == CONTENT


def test_a_wrong_size_is_refused_before_anything_is_read(tmp_path: Path, server: FileServer) -> None:
    with pytest.raises(ArchiveError, match="offers 1,000,000 bytes, 999,999 are expected"):
        fetch_dataset(table(server, size_bytes=999_999), tmp_path, SILENT)
    assert names(tmp_path) == []


def test_a_server_that_tells_no_length_may_not_send_more_than_was_published(tmp_path: Path, server: FileServer) -> None:
    server.tells_length = False
    with pytest.raises(ArchiveError, match="bytes, 400,000 are expected"):
        fetch_dataset(table(server, size_bytes=400_000), tmp_path, SILENT)
    assert (tmp_path / f"{NAME}.wrong").stat().st_size < len(CONTENT)
    fetch_dataset(table(server), tmp_path, SILENT)
    assert (tmp_path / NAME).read_bytes() == CONTENT


def test_more_than_the_disk_holds_is_refused_at_once(tmp_path: Path, server: FileServer) -> None:
    server.tells_length = False
    with pytest.raises(OutputError, match=r"are needed; give another -o\.$"):
        fetch_dataset(table(server, size_bytes=1 << 60), tmp_path, SILENT)


def test_a_file_that_is_gone_is_one_sentence(tmp_path: Path, server: FileServer) -> None:
    del server.files[NAME]
    with pytest.raises(DownloadError, match=r"answers 404 Not Found; .* `covidseg data import --from-local`\.$"):
        fetch_dataset(table(server), tmp_path, SILENT)


def test_a_server_that_cannot_be_reached_is_one_sentence(tmp_path: Path, server: FileServer) -> None:
    dataset = table(server, url="http://127.0.0.1:1/table.bin")
    with pytest.raises(DownloadError, match="cannot be reached .*refused.*; the same command goes on from there"):
        fetch_dataset(dataset, tmp_path, SILENT)


def test_offline_nothing_is_asked_for(tmp_path: Path, server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COVIDSEG_OFFLINE", "1")
    with pytest.raises(SettingsError, match="COVIDSEG_OFFLINE is set"):
        fetch_dataset(table(server), tmp_path, SILENT)
    assert server.ranges == []


def test_a_file_without_hash_is_recorded_and_held_to_it(tmp_path: Path, server: FileServer) -> None:
    dataset = table(server, sha256="", size_bytes=None)
    (fetched,) = fetch_dataset(dataset, tmp_path, SILENT)
    assert (fetched.sha256, fetched.is_verified) == (sha256(CONTENT), False)
    (tmp_path / NAME).write_bytes(CONTENT[::-1])
    problem, _no_case = find_problems(dataset, tmp_path, SILENT)
    assert problem == f"{NAME} has sha256 {sha256(CONTENT[::-1])}, expected {sha256(CONTENT)}"


@pytest.mark.parametrize("url", ["http://example.org/a", "ftp://example.org/a", "file:///etc/hostname"])
def test_a_file_without_hash_comes_over_an_encrypted_connection_or_not(tmp_path: Path, url: str) -> None:
    with pytest.raises(DownloadError, match="is not https and a has no published hash"):
        fetch_dataset(of_downloads(Download(url, "a")), tmp_path, SILENT)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere this machine has one loopback address")
def test_a_redirection_to_an_open_connection_is_not_trusted(tmp_path: Path, server: FileServer) -> None:
    with serving({NAME: CONTENT}, host="127.0.0.2") as other:
        server.redirect_to = other.url(NAME)
        with pytest.raises(DownloadError, match=r"127\.0\.0\.2:.* is not https"):
            fetch_dataset(table(server, sha256="", size_bytes=None), tmp_path, SILENT)
    assert names(tmp_path) == []


def test_a_page_in_place_of_an_archive_is_put_aside(tmp_path: Path, server: FileServer) -> None:
    dataset = table(server, sha256="", size_bytes=None, unpack_into="images")
    with pytest.raises(ArchiveError, match="is neither a zip nor a tar"):
        fetch_dataset(dataset, tmp_path, SILENT)
    assert f"{NAME}.wrong" in names(tmp_path)


def test_a_folder_that_another_process_fills_is_left_alone(tmp_path: Path, server: FileServer) -> None:
    with (tmp_path / ".fetching.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(DownloadError, match="Another covidseg is filling"):
            fetch_dataset(table(server), tmp_path, SILENT)
    assert server.ranges == []


def test_equal_names_in_two_archives_get_a_folder_each(tmp_path: Path, server: FileServer) -> None:
    write_case(tmp_path / "one", "a")
    write_case(tmp_path / "two", "a", slice(2, None))
    server.files = {f"{name}.zip": zipped(tmp_path / name) for name in ("one", "two")}
    dataset = of_downloads(
        *(Download(server.url(name), name, name[:-4], sha256(content)) for name, content in server.files.items())
    )
    root = tmp_path / "set"
    one, two = fetch_dataset(dataset, root, SILENT)
    assert list(one.files) == ["one/a_ct.nii.gz", "one/a_infection.nii.gz"]
    assert list(two.files) == ["two/a_ct.nii.gz", "two/a_infection.nii.gz"]
    for name in ("one", "two"):
        assert (root / name / "a_infection.nii.gz").read_bytes() == (
            tmp_path / name / "a_infection.nii.gz"
        ).read_bytes()
    (root / "one.zip").unlink()  # no longer needed once unpacked
    assert missing_downloads(dataset, root) == ()


def test_an_archive_whose_unpacking_was_interrupted_is_unpacked_without_the_web(
    tmp_path: Path, server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_case(tmp_path / "one", "a")
    content = zipped(tmp_path / "one")
    dataset = of_downloads(Download(server.url("one.zip"), "one.zip", ".", sha256(content)))
    root = tmp_path / "set"
    root.mkdir()
    (root / "one.zip").write_bytes(content)
    monkeypatch.setenv("COVIDSEG_OFFLINE", "1")
    fetch_dataset(dataset, root, SILENT)
    assert list(find_problems(dataset, root, SILENT)) == []


def test_a_damaged_record_is_one_sentence(tmp_path: Path, server: FileServer) -> None:
    (tmp_path / fetching.RECORD_FILE).write_text('{"files": [{"file_name": 3}]}')
    with pytest.raises(ArchiveError, match="is damaged; delete it"):
        fetch_dataset(table(server), tmp_path, SILENT)


# From this disk


def test_an_archive_on_this_disk_is_verified_and_unpacked(tmp_path: Path) -> None:
    write_case(tmp_path / "one", "a")
    (tmp_path / "got").mkdir()
    content = zipped(tmp_path / "one")
    (tmp_path / "got" / "one.zip").write_bytes(content)
    (tmp_path / "got" / "unrelated.txt").write_text("mine")
    dataset = of_downloads(Download("https://example.org/one.zip", "one.zip", ".", sha256(content)))
    (imported,) = import_local(dataset, tmp_path / "got", tmp_path / "set", SILENT)
    assert imported.is_verified
    assert names(tmp_path / "set") == ["a_ct.nii.gz", "a_infection.nii.gz", fetching.RECORD_FILE]
    assert missing_downloads(dataset, tmp_path / "set") == ()


def test_an_archive_that_is_not_the_published_one_is_not_imported(tmp_path: Path) -> None:
    write_case(tmp_path / "one", "a")
    (tmp_path / "one.zip").write_bytes(zipped(tmp_path / "one"))
    dataset = of_downloads(Download("https://example.org/one.zip", "one.zip", ".", "0" * 64))
    (tmp_path / "got").mkdir()
    (tmp_path / "one.zip").rename(tmp_path / "got" / "one.zip")
    with pytest.raises(ArchiveError, match="the published file 0000"):
        import_local(dataset, tmp_path / "got", tmp_path / "set", SILENT)
    assert names(tmp_path / "set") == []


def test_a_folder_of_cases_is_linked_and_a_second_import_adds_what_is_new(tmp_path: Path) -> None:
    got, root = tmp_path / "got", tmp_path / "set"
    write_case(got, "a")
    (got / "._a_ct.nii.gz").write_bytes(b"macOS")
    assert import_local(REBUILT, got, root, SILENT) == ()
    write_case(got, "b")
    import_local(REBUILT, got, root, SILENT)
    assert [case.name for case in REBUILT.find_cases(root)] == ["a", "b"]
    assert (root / "a_ct.nii.gz").samefile(got / "a_ct.nii.gz")
    assert not (root / "._a_ct.nii.gz").exists()


def test_an_import_replaces_no_other_file(tmp_path: Path) -> None:
    got, root = tmp_path / "got", tmp_path / "set"
    write_case(got, "a")
    root.mkdir()
    (root / "a_infection.nii.gz").write_bytes(b"mine")
    with pytest.raises(ArchiveError, match="is there already and differs"):
        import_local(REBUILT, got, root, SILENT)
    assert names(root) == ["a_infection.nii.gz"]


def test_a_folder_without_a_case_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    got, root = tmp_path / "got", tmp_path / "set"
    got.mkdir()
    (got / "letter.txt").write_text("mine")
    with pytest.raises(ArchiveError, match=r"brings no case of covid-19-ct-seg-rebuilt\. A folder of <case>_ct"):
        import_local(REBUILT, got, root, SILENT)
    assert names(root) == []
    assert names(got) == ["letter.txt"]


def test_a_set_is_not_imported_into_itself(tmp_path: Path) -> None:
    write_case(tmp_path, "a")
    for root in (tmp_path, tmp_path / "set"):
        with pytest.raises(SettingsError, match="lie one in the other"):
            import_local(REBUILT, tmp_path, root, SILENT)


# Verified


def test_sound_cases_have_no_problem(tmp_path: Path) -> None:
    write_case(tmp_path, "a")
    assert list(find_problems(REBUILT, tmp_path, SILENT)) == []


def test_every_broken_case_is_named(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write_case(tmp_path, name)
    write_case(tmp_path, "b", slice(2, None))
    (tmp_path / "c_ct.nii.gz").write_bytes((tmp_path / "c_ct.nii.gz").read_bytes()[:-100])
    first, second = find_problems(REBUILT, tmp_path, SILENT)
    assert first.startswith("b: b_ct.nii.gz has shape (28, 36, 44) and b_infection.nii.gz (26, 36, 44)")
    assert second.startswith("c: c_ct.nii.gz")


def test_files_that_were_lost_since_are_a_problem(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_case(tmp_path / "one", name)
    (tmp_path / "got").mkdir()
    (tmp_path / "got" / "one.zip").write_bytes(zipped(tmp_path / "one"))
    dataset = of_downloads(Download("https://example.org/one.zip", "one.zip", "."))
    import_local(dataset, tmp_path / "got", tmp_path / "set", SILENT)
    (tmp_path / "set" / "b_ct.nii.gz").unlink()
    (problem,) = find_problems(dataset, tmp_path / "set", SILENT)
    assert problem == "one.zip: 1 of its 4 files are gone or cut, first b_ct.nii.gz"


def test_a_folder_without_cases_is_a_problem(tmp_path: Path) -> None:
    (problem,) = find_problems(REBUILT, tmp_path / "nowhere", SILENT)
    assert "holds no case of covid-19-ct-seg-rebuilt. A folder of" in problem
