import errno
import os
import stat
from pathlib import Path

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
    with pytest.raises(InputError, match="output=.*b.json cannot be written to .File exists.. Name another folder"):
        files.make_folder(tmp_path / "b.json", "output")


def refuse_sync(monkeypatch, number: int, of_folders: bool) -> None:
    """Let fsync fail for folders, or for files."""

    def fsync(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode) == of_folders:
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.os, "fsync", fsync)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EIO, errno.EACCES, errno.ENOTSUP])
def test_a_disk_that_cannot_sync_folders_is_written_to(tmp_path, monkeypatch, number):
    refuse_sync(monkeypatch, number, of_folders=True)
    files.write_bytes(tmp_path / "a", b"a")
    with files.new_folder(tmp_path / "case") as fresh:
        (fresh / "one").write_text("1")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "case"]


def test_a_file_that_is_not_durable_is_an_error_unless_its_disk_does_not_know_the_call(tmp_path, monkeypatch):
    refuse_sync(monkeypatch, errno.EINVAL, of_folders=False)
    files.write_bytes(tmp_path / "a", b"a")
    refuse_sync(monkeypatch, errno.EIO, of_folders=False)
    with pytest.raises(OSError, match="Input/output"):
        files.write_bytes(tmp_path / "b", b"b")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("name", [255 * "x", 127 * "ü", 85 * "腎"])
def test_the_longest_names_can_be_written(tmp_path, name):
    files.write_bytes(tmp_path / name, b"a")
    files.write_bytes(tmp_path / (name[:-1] + "y"), b"b")
    assert (tmp_path / name).read_bytes() == b"a" and len(os.listdir(tmp_path)) == 2
    one, other = (files.temporary_path(tmp_path / longer) for longer in (name, name[:-1] + "y"))
    assert one != other and one.name.endswith(f".{os.getpid()}.part")


def test_names_that_a_disk_cannot_hold_are_refused_before_the_work(tmp_path, monkeypatch):
    files.check_names(tmp_path, ["a.nii.gz", "A.nii.gz", "Ü", "u\u0308"], "output")
    assert not os.listdir(tmp_path)
    with pytest.raises(InputError, match="output=.*the name x+ is too long for this disk"):
        files.check_names(tmp_path, [256 * "x", "a"], "output")
    exists = Path.exists
    monkeypatch.setattr(Path, "exists", lambda path: exists(path.with_name(path.name.replace("CASE", "case").lower())))
    with pytest.raises(InputError, match="A.nii.gz and a.nii.gz would be one file.*upper from lower case"):
        files.check_names(tmp_path, ["a.nii.gz", "b.nii.gz", "A.nii.gz"], "output")
    files.check_names(tmp_path, ["a.nii.gz", "b.nii.gz"], "output")


def test_a_folder_that_cannot_be_written_to_is_refused_before_the_work(tmp_path, monkeypatch):
    def refuse(path, content):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(InputError, match=r"run=.* cannot be written to \(Read-only file system\)"):
        files.make_folder(tmp_path, "run")


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EIO])
def test_without_locks_the_process_that_is_named_holds_the_folder(tmp_path, monkeypatch, number):
    def flock(handle, how):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.fcntl, "flock", flock)
    with files.exclusive(tmp_path, "run"):
        (tmp_path / "result").write_text("")
    assert (tmp_path / ".lock").read_text() == ""  # no longer held
    other = f"pid {os.getppid()} on "
    (tmp_path / ".lock").write_text(other + files.socket.gethostname())
    with pytest.raises(InputError, match=rf"in use by another process \(pid {os.getppid()}\)"):
        files.exclusive(tmp_path, "run").__enter__()
    for holder in (other + "another machine", f"pid {2**22 + 1} on {files.socket.gethostname()}", "pid 1", "garbage"):
        (tmp_path / ".lock").write_text(holder)
        with files.exclusive(tmp_path, "run"):
            pass


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_text_is_read_as_editors_save_it(tmp_path, encoding):
    text = 'case,patient\r\n"a, b",Jürgen\r\n'
    (tmp_path / "a").write_bytes(text.encode(encoding))
    assert files.read_text(tmp_path / "a") == text.replace("\r", "")
    assert files.read_table(tmp_path / "a") == [{"case": "a, b", "patient": "Jürgen"}]
    (tmp_path / "b").write_bytes('{"name": "Müller"}'.encode(encoding))
    assert files.read_json(tmp_path / "b") == {"name": "Müller"}


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_tables_of_spreadsheets_have_other_delimiters(tmp_path, delimiter):
    (tmp_path / "a").write_text(delimiter.join("ab") + "\n" + delimiter.join(["1,5", "2"]) + "\n")
    assert files.read_table(tmp_path / "a") == [{"a": "1,5", "b": "2"}]
