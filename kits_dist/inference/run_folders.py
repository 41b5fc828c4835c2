"""The runs that `run=` names, and whether they can be opened: what is known before torch is imported."""

from pathlib import Path

from kits_dist.utils.errors import InputError, MissingInput
from kits_dist.utils.text import parse_folders

EXPORT = "model.safetensors"  # in a run folder: the best weights, and what prediction needs to know about them


def run_folders(run: str) -> list[Path]:
    """Return the folders of `run=A` or `run=[A,B]`.

    Raises MissingInput where one holds no weights, InputError where a run is named twice.
    """
    folders = parse_folders(run, "run")
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise InputError(f"run={run} names a run twice; it would count twice. Name each once.")
    for folder in folders:
        if not (folder / EXPORT).is_file():
            raise MissingInput(
                f"{folder / EXPORT}: no such file. It is written at a run's first validation; is this the run's folder?"
            )
    return folders
