"""List everything below a folder, so that a search can account for every file."""

import os
from pathlib import Path
from typing import NamedTuple

# what viewers, Windows and macOS leave behind; hidden names are of the kind, too
_SYSTEM = {"dicomdir", "thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "$recycle.bin", "lost+found"}


class Tree(NamedTuple):
    """Everything below a folder. Paths begin with the folder; links are followed and keep their own names."""

    files: list[Path]  # in the order of their paths
    system: list[Path]  # hidden files and folders, DICOMDIR, Thumbs.db: not looked into
    unreadable: dict[Path, str]  # {file or folder: why}
    empty: list[Path]  # folders that hold nothing


def list_tree(folder: Path, without: Path | None = None) -> Tree:
    """List `folder` at any depth. A folder that cannot be read is listed, not raised.

    without   a folder that is passed over, such as the one for the outputs
    """
    tree = Tree([], [], {}, [])
    seen = set() if without is None else {without.resolve()}
    _list(folder, tree, seen)
    return tree


def _list(folder: Path, tree: Tree, seen: set[Path]) -> None:
    """Add what `folder` holds to `tree`; a folder in `seen` was listed already, under another name."""
    real = folder.resolve()
    if real in seen:
        return
    seen.add(real)
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        tree.unreadable[folder] = error.strerror or str(error)
        return

    if not entries:
        tree.empty.append(folder)
    for entry in entries:
        path = folder / entry.name
        try:
            is_folder, is_file = entry.is_dir(), entry.is_file()
        except OSError as error:  # a link into a folder that must not be read, or to itself
            tree.unreadable[path] = error.strerror or str(error)
            continue
        if entry.name.startswith(".") or entry.name.lower() in _SYSTEM:
            tree.system.append(path)
        elif is_folder:
            _list(path, tree, seen)
        elif is_file:
            tree.files.append(path)
        else:  # opening a pipe would wait for a writer
            tree.unreadable[path] = "a link to nothing" if entry.is_symlink() else "not a file"
