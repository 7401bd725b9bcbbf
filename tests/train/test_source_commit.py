"""The commit of a checkout, asked of git itself."""

import subprocess

import pytest

from covidseg_train.source_commit import source_commit


def git(folder, *arguments):
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false")
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path):
    git(tmp_path, "init", "--quiet")
    (tmp_path / "module.py").write_text("one = 1\n")
    git(tmp_path, "add", "module.py")
    git(tmp_path, "commit", "--quiet", "--message", "one")
    return tmp_path


def test_a_checkout_tells_its_commit_and_whether_it_was_changed(checkout):
    sha = git(checkout, "rev-parse", "HEAD")
    assert source_commit(checkout) == {"sha": sha, "is_clean": True}
    (checkout / "module.py").write_text("one = 2\n")
    assert source_commit(checkout) == {"sha": sha, "is_clean": False}


def test_an_installed_package_has_no_commit(tmp_path):
    assert source_commit(tmp_path) is None


def test_without_git_there_is_no_commit(checkout, monkeypatch):
    monkeypatch.setenv("PATH", str(checkout / "no-programs"))
    assert source_commit(checkout) is None
