import os
import subprocess
import sys

import numpy as np
import pytest

from kits_dist.utils import files
from kits_dist.utils.errors import InputError


def test_a_file_is_replaced_whole_and_nothing_is_left_beside(tmp_path):
    files.write_bytes(tmp_path / "a", b"old")
    files.write_bytes(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_folder_appears_only_when_its_block_ends_well(tmp_path):
    target = tmp_path / "case"
    with files.new_folder(target) as fresh:
        (fresh / "one").write_text("1")
        assert not target.exists()
    with pytest.raises(RuntimeError), files.new_folder(target) as fresh:
        (fresh / "two").write_text("2")
        raise RuntimeError("killed half-way")
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


def test_a_folder_is_held_by_one_process_and_free_after_a_kill(tmp_path):
    code = "import sys, time; from pathlib import Path; from kits_dist.utils import files\n"
    code += "with files.exclusive(Path(sys.argv[1]), 'run'): print('held', flush=True); time.sleep(60)"
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "held\n"
    with pytest.raises(InputError, match=rf"run={tmp_path} is in use by another process \(pid {other.pid}\)"):
        with files.exclusive(tmp_path, "run"):
            pass
    other.kill()
    other.wait()
    with files.exclusive(tmp_path, "run"):
        (tmp_path / "result").write_text("")
    assert (tmp_path / "result").exists()


def test_a_folder_made_for_nothing_is_removed_again(tmp_path):
    with pytest.raises(RuntimeError), files.exclusive(tmp_path / "a" / "run", "run"):
        raise RuntimeError("wrong argument")
    assert not (tmp_path / "a" / "run").exists()
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(InputError, match="run=.*file is a file. Name a folder."),
        files.exclusive(tmp_path / "file", "run"),
    ):
        pass


def test_leftovers_of_killed_writers_are_swept_and_those_of_living_ones_kept(tmp_path):
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    (tmp_path / f".case.{ended.stdout.strip()}.part").mkdir()
    (tmp_path / f".file.{ended.stdout.strip()}.old").write_text("")
    (tmp_path / f".case.{os.getpid()}.part").mkdir()
    (tmp_path / "case").mkdir()
    with files.exclusive(tmp_path, "store"):
        assert sorted(p.name for p in tmp_path.iterdir()) == [f".case.{os.getpid()}.part", ".lock", "case"]


def test_json_that_is_no_object_and_folders_that_cannot_be_made_are_refused(tmp_path):
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
