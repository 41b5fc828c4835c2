import pytest

from kits_dist import files


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
