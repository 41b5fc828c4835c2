"""Everything below a folder is in one of the lists."""

import os

from kits_dist.imaging.tree import list_tree


def test_every_entry_is_in_one_list(tmp_path):
    for name in ("b/2.dcm", "a/1.dcm", "a/.hidden", "Thumbs.db", "b/dicomdir", ".git/config", "out/x.nii.gz"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    (tmp_path / "self").symlink_to(tmp_path / "self")
    os.mkfifo(tmp_path / "pipe")
    tree = list_tree(tmp_path, without=tmp_path / "out")
    assert tree.files == [tmp_path / "a" / "1.dcm", tmp_path / "b" / "2.dcm"]
    assert [str(path.relative_to(tmp_path)) for path in tree.system] == [".git", "Thumbs.db", "a/.hidden", "b/dicomdir"]
    why = {path.name: why for path, why in tree.unreadable.items()}
    assert why == {
        "gone": "a link to nothing",
        "pipe": "not a file",
        "self": "Too many levels of symbolic links",
    }
    assert tree.empty == [tmp_path / "empty"]


def test_links_are_followed_and_a_circle_ends(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "1.dcm").touch()
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "anna").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in")
    assert list_tree(tmp_path / "in").files == [tmp_path / "in" / "anna" / "1.dcm"]


def test_a_folder_that_must_not_be_read_is_listed(tmp_path, monkeypatch):
    """Tests may run as root, whom no permission stops."""
    (tmp_path / "closed").mkdir()
    real = os.scandir

    def scandir(path):
        if path == tmp_path / "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert list_tree(tmp_path).unreadable == {tmp_path / "closed": "Permission denied"}
