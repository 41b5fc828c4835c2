import os

import numpy as np
import pytest

from kits_dist.utils import files
from kits_dist.utils.errors import InputError


def test_a_file_is_replaced_as_a_whole_and_nothing_else_remains(tmp_path):
    files.write_bytes(tmp_path / "a", b"old")
    files.write_bytes(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_folder_appears_only_when_its_block_ends_well(tmp_path):
    target = tmp_path / "case"
    with files.new_folder(target) as fresh:
        (fresh / "one").write_text("1")
        assert not target.exists()
    with pytest.raises(ZeroDivisionError), files.new_folder(target) as fresh:
        (fresh / "two").write_text(str(1 / 0))
    assert [p.name for p in target.iterdir()] == ["one"]
    with files.new_folder(target) as fresh:
        (fresh / "three").write_text("3")
    assert [p.name for p in target.iterdir()] == ["three"]
    assert [p.name for p in tmp_path.iterdir()] == ["case"]


@pytest.mark.parametrize(
    "array", [np.arange(24, dtype=np.uint8).reshape(2, 3, 4)[:, ::2], np.arange(3, dtype=np.int32)]
)
def test_arrays_are_written_as_numpy_reads_them_rows_contiguous(tmp_path, array):
    files.write_array(tmp_path / "a.npy", array)
    read = np.load(tmp_path / "a.npy", mmap_mode="r")
    assert np.array_equal(read, array) and read.flags.c_contiguous


def test_a_folder_is_held_once_and_free_afterwards(tmp_path):
    with files.exclusive(tmp_path, "run"):
        in_use = rf"run={tmp_path} is in use by another process \(pid {os.getpid()}\)"
        with pytest.raises(InputError, match=in_use), files.exclusive(tmp_path, "run"):
            pass
    with files.exclusive(tmp_path, "run"):
        (tmp_path / "result").write_text("")
    assert (tmp_path / "result").exists()


def test_a_folder_in_which_nothing_was_written_is_removed_again(tmp_path):
    with pytest.raises(RuntimeError), files.exclusive(tmp_path / "a" / "run", "run"):
        raise RuntimeError("wrong argument")
    assert not (tmp_path / "a" / "run").exists()
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(InputError, match="run=.*file is a file. Name a folder."),
        files.exclusive(tmp_path / "file", "run"),
    ):
        pass


def test_leftovers_of_killed_writers_are_removed_and_those_of_running_ones_kept(tmp_path):
    ended = 2**22 + 1  # above the largest process id of Linux
    (tmp_path / f".case.{ended}.part").mkdir()
    (tmp_path / f".case.{ended}.part" / f".file.{ended}.part").write_text("")  # killed while it wrote this one
    (tmp_path / f".file.{ended}.old").write_text("")
    (tmp_path / f".case.{os.getpid()}.part").mkdir()
    (tmp_path / "case").mkdir()
    with files.exclusive(tmp_path, "store"):
        assert sorted(p.name for p in tmp_path.iterdir()) == [f".case.{os.getpid()}.part", ".lock", "case"]


def test_unreadable_json_and_impossible_folders_are_refused(tmp_path):
    files.write_json(tmp_path / "a.json", {"a": 1})
    assert files.read_json(tmp_path / "a.json") == {"a": 1}
    for name, content in (("b.json", "[]"), ("c.json", "{"), ("none.json", None)):
        if content is not None:
            (tmp_path / name).write_text(content)
        with pytest.raises(InputError, match=f"{name}: cannot be read"):
            files.read_json(tmp_path / name)
    files.make_folder(tmp_path / "x" / "y", "output")
    assert (tmp_path / "x" / "y").is_dir()
    with pytest.raises(InputError, match="output=.*b.json cannot be made .File exists.. Name another folder"):
        files.make_folder(tmp_path / "b.json", "output")
