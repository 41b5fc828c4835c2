import os

import pytest

from kits_dist.utils.errors import InputError, MissingInput
from kits_dist.utils.text import listed, parse_folders, typed_path, utf8


def test_a_long_list_is_shortened_and_counted():
    assert listed([]) == ""
    assert listed(["a", "b"], limit=2) == "a, b"
    assert listed(["a", "b", "c", "d"], limit=2) == "a, b and 2 more"


def test_folders_are_split_only_inside_brackets_and_an_existing_folder_never(tmp_path):
    assert [str(p) for p in parse_folders("a", "run")] == ["a"]
    assert [str(p) for p in parse_folders("[a, 'b c']", "run")] == ["a", "b c"]
    odd = tmp_path / "[a,b]"
    odd.mkdir()
    assert parse_folders(str(odd), "run") == [odd]
    with pytest.raises(MissingInput, match=r"run=a,b: no such folder\. Several are written run=\[A,B\]"):
        parse_folders("a,b", "run")
    with pytest.raises(InputError, match="names an empty folder"):
        parse_folders("[a,]", "run")


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty working folder, which is also the home folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/ann")
    monkeypatch.setenv("DATA", "/data")
    monkeypatch.delenv("NOWHERE", raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("/data/raw", "/data/raw"),
        ("/data/raw/", "/data/raw/"),
        ("~/raw", "/home/ann/raw"),
        ("$DATA/raw", "/data/raw"),
        ("${DATA}/raw", "/data/raw"),
        ("'/data/my raw'", "/data/my raw"),
        ("\u201c/data/raw\u201d", "/data/raw"),
        (" /data/raw\r", "/data/raw"),
        ("file:///data/my%20raw", "/data/my raw"),
        ("file://localhost/data/a#1?", "/data/a#1?"),
        ("FILE:/data/raw", "/data/raw"),
        ("/data/my\\ raw", "/data/my raw"),
        ("data\\raw\\case_00001", "data/raw/case_00001"),
        ("tumor", "tumor"),
        ("", ""),
    ],
)
def test_a_path_is_read_as_people_type_it(home, typed, meant):
    assert typed_path(typed, "input") == meant


@pytest.mark.parametrize("name", ["~", "$DATA", "a b ", "'a'", "a\\b", "file:"])
def test_a_path_that_exists_is_what_was_meant(home, name):
    (home / name).mkdir()
    assert typed_path(name, "input") == name


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("s3://bucket/raw", "input=s3://bucket/raw: is no folder or file of this machine"),
        ("https://host/a.nii.gz", "is no folder or file of this machine"),
        ("file://server/raw", "is no folder or file of this machine"),
        ("C:\\raw", "is a path of Windows. Here it is perhaps /mnt/c/"),
        ("d:/raw", "is a path of Windows. Here it is perhaps /mnt/d/"),
        ("~nobody_of_this_name/raw", "the home folder of ~nobody_of_this_name is not known"),
        ("$NOWHERE/raw", r"\$NOWHERE is not set in the environment"),
        ("/a/${NOWHERE}", r"\$\{NOWHERE\} is not set"),
    ],
)
def test_a_path_that_cannot_be_meant_is_refused(home, typed, said):
    with pytest.raises(InputError, match=said):
        typed_path(typed, "input")


def test_each_of_several_folders_is_read_as_people_type_it(home):
    assert [str(p) for p in parse_folders('[~/a, "$DATA/b"]', "run")] == ["/home/ann/a", "/data/b"]


def test_any_name_becomes_text_that_can_be_written():
    assert utf8("Müller") == "Müller"
    assert utf8(os.fsdecode(b"Ni\xe8re")) == "Ni\\udce8re"
