import pytest

from kits_dist.utils.errors import InputError, MissingInput
from kits_dist.utils.text import listed, parse_folders


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
