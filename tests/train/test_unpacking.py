"""Archives: what is sound comes out whole, what is not leaves nothing behind."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import pytest
from served_sets import zip_bytes

from covidseg_train.datasets.unpacking import ArchiveError, unpack_archive

SOUND = {"images/a.nii.gz": b"one", "images/b.nii.gz": b"two"}


def tar_bytes(files: dict[str, bytes], mode: str = "w") -> bytes:
    """A tar of these files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def tar_entry(name: str, kind: bytes, link_to: str = "") -> bytes:
    """A tar of one entry that is no file."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        entry = tarfile.TarInfo(name)
        entry.type, entry.linkname = kind, link_to
        archive.addfile(entry)
    return buffer.getvalue()


def written(folder: Path, content: bytes, name: str = "set.zip") -> Path:
    """An archive on disk, in a folder that exists for it alone."""
    path = folder / "archives" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return path


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "content", [zip_bytes(SOUND), tar_bytes(SOUND), tar_bytes(SOUND, "w:gz"), tar_bytes(SOUND, "w:xz")]
)
def test_every_kind_of_archive_is_unpacked(tmp_path: Path, content: bytes) -> None:
    sizes = unpack_archive(written(tmp_path, content), tmp_path / "set")
    assert sizes == {"images/a.nii.gz": 3, "images/b.nii.gz": 3}
    assert tree(tmp_path / "set") == SOUND


def test_names_that_begin_with_a_dot_and_backslashes_of_windows_are_ordinary_paths(tmp_path: Path) -> None:
    unpack_archive(written(tmp_path, tar_bytes({"./a/b.txt": b"1", "a\\c.txt": b"2"})), tmp_path / "set")
    assert tree(tmp_path / "set") == {"a/b.txt": b"1", "a/c.txt": b"2"}


def test_what_macos_strews_about_is_left_out(tmp_path: Path) -> None:
    strewn = {"images/._a.nii.gz": b"x", "__MACOSX/images/a.nii.gz": b"x", ".DS_Store": b"x"}
    assert unpack_archive(written(tmp_path, tar_bytes({**strewn, **SOUND})), tmp_path / "set").keys() == SOUND.keys()
    assert tree(tmp_path / "set") == SOUND


@pytest.mark.parametrize(
    "name",
    ["../out.txt", "a/../../out.txt", "/tmp/out.txt", "..\\out.txt", "C:\\out.txt", "C:out.txt", "a/.. /out.txt"],
)
@pytest.mark.parametrize("pack", [zip_bytes, tar_bytes])
def test_no_path_leaves_the_folder(tmp_path: Path, name: str, pack: object) -> None:
    archive = written(tmp_path, pack({**SOUND, name: b"evil"}))  # type: ignore[operator]
    with pytest.raises(ArchiveError, match="a path out of the folder; nothing was unpacked"):
        unpack_archive(archive, tmp_path / "in" / "set")
    assert tree(tmp_path / "in") == {}
    assert not Path("/tmp/out.txt").exists()


@pytest.mark.parametrize(
    ("kind", "link_to"),
    [
        (tarfile.SYMTYPE, "../../secret"),
        (tarfile.SYMTYPE, "/etc"),
        (tarfile.LNKTYPE, "../../secret"),
        (tarfile.CHRTYPE, ""),
        (tarfile.BLKTYPE, ""),
        (tarfile.FIFOTYPE, ""),
    ],
)
def test_links_and_devices_of_a_tar_are_refused(tmp_path: Path, kind: bytes, link_to: str) -> None:
    with pytest.raises(ArchiveError, match="door, a link or a device"):
        unpack_archive(written(tmp_path, tar_entry("door", kind, link_to)), tmp_path / "set")
    assert list((tmp_path / "set").iterdir()) == []


def test_a_link_in_a_zip_is_refused(tmp_path: Path) -> None:
    entry = zipfile.ZipInfo("door")
    entry.create_system, entry.external_attr = 3, 0o120777 << 16
    path = written(tmp_path, b"")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(entry, "../../secret")
    with pytest.raises(ArchiveError, match="door, a link or a device"):
        unpack_archive(path, tmp_path / "set")


def test_a_bomb_is_refused_by_what_it_declares(tmp_path: Path) -> None:
    path = written(tmp_path, b"")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("small.txt", b"small")
        archive.filelist[0].file_size = 1 << 50
    with pytest.raises(ArchiveError, match="would unpack to more than its size lets expect"):
        unpack_archive(path, tmp_path / "set")
    assert tree(tmp_path / "set") == {}


def test_the_bound_is_on_all_files_and_levels_together(tmp_path: Path) -> None:
    inner = zip_bytes({"a": bytes(600), "b": bytes(600)})
    path = written(tmp_path, zip_bytes({"inner.zip": inner}))
    needed = len(inner) + 1200
    with pytest.raises(ArchiveError, match="b alone to 600 bytes"):
        unpack_archive(path, tmp_path / "set", max_bytes=needed - 1)
    assert unpack_archive(path, tmp_path / "set", max_bytes=needed) == {"inner/a": 600, "inner/b": 600}


def test_a_member_that_holds_more_than_it_declares_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, b"")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.txt", bytes(10_000))
        archive.filelist[0].file_size = 10
    with pytest.raises(ArchiveError, match="is damaged"):
        unpack_archive(path, tmp_path / "set")
    assert tree(tmp_path / "set") == {}


def test_archives_in_archives_get_a_folder_each_so_that_equal_names_do_not_meet(tmp_path: Path) -> None:
    nested = {
        "images.zip": zip_bytes({"case.nii.gz": b"image"}),
        "masks/lung.tar.gz": tar_bytes({"case.nii.gz": b"lung"}, "w:gz"),
        "Effusions.zip": zip_bytes({"Effusions/case.nii.gz": b"effusion"}),
    }
    unpack_archive(written(tmp_path, tar_bytes(nested)), tmp_path / "set")
    assert tree(tmp_path / "set") == {
        "images/case.nii.gz": b"image",
        "masks/lung/case.nii.gz": b"lung",
        "Effusions/case.nii.gz": b"effusion",
    }


def test_a_path_out_of_the_folder_is_found_in_an_inner_archive(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match=r"^inner\.zip|^inner holds"):
        unpack_archive(written(tmp_path, zip_bytes({"inner.zip": zip_bytes({"../../x": b""})})), tmp_path / "set")
    assert tree(tmp_path / "set") == {}


def test_archives_without_end_are_refused(tmp_path: Path) -> None:
    content = zip_bytes({"a.txt": b"1"})
    for _ in range(4):
        content = zip_bytes({"inner.zip": content})
    with pytest.raises(ArchiveError, match="at most 3 are unpacked"):
        unpack_archive(written(tmp_path, content), tmp_path / "set")


def test_a_different_file_is_not_overwritten_and_an_equal_one_is_no_harm(tmp_path: Path) -> None:
    archive = written(tmp_path, zip_bytes(SOUND))
    unpack_archive(archive, tmp_path / "set")
    unpack_archive(archive, tmp_path / "set")
    (tmp_path / "set" / "images" / "b.nii.gz").write_bytes(b"mine")
    (tmp_path / "set" / "images" / "a.nii.gz").unlink()
    with pytest.raises(ArchiveError, match=r"b\.nii\.gz is there already and differs"):
        unpack_archive(archive, tmp_path / "set")
    assert tree(tmp_path / "set") == {"images/b.nii.gz": b"mine"}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("second", ["a.txt", "a.txt/b.txt"])
def test_one_path_for_two_things_is_refused(tmp_path: Path, second: str) -> None:
    path = written(tmp_path, b"")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", b"1")
        archive.writestr(second, b"2")
    with pytest.raises(ArchiveError, match="twice|as a file and as a folder"):
        unpack_archive(path, tmp_path / "set")
    assert tree(tmp_path / "set") == {}


@pytest.mark.parametrize("pack", [zip_bytes, lambda files: tar_bytes(files, "w:gz"), tar_bytes])
def test_a_damaged_archive_leaves_nothing(tmp_path: Path, pack: object) -> None:
    content = bytearray(pack({"a.bin": bytes(range(256)) * 40, "b.bin": b"b"}))  # type: ignore[operator]
    del content[len(content) // 2 : len(content) // 2 + 40]
    path = written(tmp_path, bytes(content))
    with pytest.raises(ArchiveError, match=r"set\.zip"):
        unpack_archive(path, tmp_path / "set")
    assert tree(tmp_path / "set") == {}


def test_what_is_no_archive_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match=r"^set\.zip is neither a zip nor a tar; fetch it again\.$"):
        unpack_archive(written(tmp_path, b"<html>gone</html>"), tmp_path / "set")


def test_an_encrypted_zip_is_one_sentence(tmp_path: Path) -> None:
    content = bytearray(zip_bytes({"a.txt": b"1"}))
    content[content.index(b"PK\x01\x02") + 8] |= 1
    with pytest.raises(ArchiveError, match="is encrypted"):
        unpack_archive(written(tmp_path, bytes(content)), tmp_path / "set")


def test_what_a_killed_process_left_is_cleared_away(tmp_path: Path) -> None:
    left = tmp_path / "set" / ".unpacking"
    left.mkdir(parents=True)
    (left / "1").write_bytes(b"half")
    unpack_archive(written(tmp_path, zip_bytes(SOUND)), tmp_path / "set")
    assert tree(tmp_path / "set") == SOUND
    assert not left.exists()


def test_a_tar_that_ends_with_a_zip_is_a_tar(tmp_path: Path) -> None:
    content = tar_bytes({"a.txt": b"1", "inner.zip": zip_bytes({"b.txt": b"2"})})
    unpack_archive(written(tmp_path, content), tmp_path / "set")
    assert tree(tmp_path / "set") == {"a.txt": b"1", "inner/b.txt": b"2"}
