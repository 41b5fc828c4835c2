"""The runs that `run=` names, and whether they can be opened: what is known before torch is imported."""

from pathlib import Path

from kits_dist.utils import files
from kits_dist.utils.errors import InputError
from kits_dist.utils.text import parse_folders


def run_folders(run: str) -> list[Path]:
    """Return the folders of `run=A` or `run=[A,B]`.

    Raises MissingInput where one holds no weights, InputError where a run is named twice.
    """
    folders = parse_folders(run, "run")
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise InputError(f"run={run} names a run twice; it would count twice. Name each once.")
    for folder in folders:
        files.require_export(folder / "model.safetensors")
    return folders
