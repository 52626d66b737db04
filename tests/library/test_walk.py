"""The files below a folder, whatever lies there; and rows that are kept until a folder changes."""

from __future__ import annotations

import os
import sys
import time

import pytest

from lib_lycoris.library.walk import Kept, walk_folders

WINDOWS = sys.platform == "win32"


def names(root):
    return [os.path.relpath(os.path.join(folder, file), root).replace("\\", "/") for folder, files in walk_folders(root) for file in sorted(files)]


def put(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")


def old(*folders):
    """As if nothing had changed there for a while."""
    for folder in folders:
        os.utime(folder, (time.time() - 60, time.time() - 60))


def test_hidden_files_and_trainings_states_are_passed_over_and_what_is_missing_is_empty(tmp_path):
    for name in ("a", "deep/er/b", ".hidden", ".trash/c", "net-states/d", "deep/net-states/e"):
        put(tmp_path / name)
    assert names(tmp_path) == ["a", "deep/er/b"] and names(tmp_path / "nowhere") == []


@pytest.mark.skipif(WINDOWS, reason="links need rights there")
def test_links_are_followed_and_a_loop_of_them_ends(tmp_path):
    put(tmp_path / "here" / "a")
    put(tmp_path / "elsewhere" / "b")
    (tmp_path / "here" / "loop").symlink_to(tmp_path / "here", target_is_directory=True)
    (tmp_path / "here" / "self").symlink_to(tmp_path / "here" / "self")
    (tmp_path / "here" / "out").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert [name for name in names(tmp_path / "here") if name != "self"] == ["a", "out/b"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems have no such names")
def test_a_name_that_is_no_text_is_passed_over(tmp_path):
    put(tmp_path / "a")
    with open(os.path.join(os.fsencode(tmp_path), b"bad\xff"), "wb"):
        pass
    assert names(tmp_path) == ["a"]


def test_rows_are_made_once_until_a_folder_changes_or_somebody_asks(tmp_path):
    (tmp_path / "deep").mkdir()
    made, folders = [], [tmp_path]

    def make():
        made.append(len(made))
        return [{"name": name} for name in names(tmp_path)]

    kept = Kept(lambda: folders, make)
    old(tmp_path, tmp_path / "deep")
    assert kept.rows() == kept.rows() == [] and len(made) == 1
    put(tmp_path / "deep" / "a")
    assert kept.rows() == [{"name": "deep/a"}]
    old(tmp_path, tmp_path / "deep")
    kept.rows()
    count = len(made)
    assert kept.rows() == [{"name": "deep/a"}] and len(made) == count
    kept.forget()
    kept.rows()
    folders.append(tmp_path / "deep")
    kept.rows()
    assert len(made) == count + 2


def test_a_folder_that_changed_just_now_is_not_trusted_to_stay(tmp_path):
    made = []
    kept = Kept(lambda: [tmp_path], lambda: made.append(1) or [])
    put(tmp_path / "a")
    kept.rows()
    kept.rows()
    assert len(made) == 2


def test_a_folder_that_comes_later_is_seen(tmp_path):
    kept = Kept(lambda: [tmp_path / "later"], lambda: [{"name": name} for name in names(tmp_path / "later")])
    assert kept.rows() == kept.rows() == []
    put(tmp_path / "later" / "a")
    assert kept.rows() == [{"name": "a"}]
