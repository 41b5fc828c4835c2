"""Compare two systems on the same cases, from their tables or after scoring their label maps."""

from pathlib import Path
from typing import NamedTuple

from kits_dist.distributed.ranks import Ranks
from kits_dist.evaluation import comparison
from kits_dist.evaluation.score_folder import Truth, score_folder
from kits_dist.evaluation.tables import read_cases
from kits_dist.utils import files
from kits_dist.utils.errors import InputError, MissingInput


class _Origin(NamedTuple):
    """What a table of scores was made of."""

    data: str = "unknown"
    reference: str = "unknown"
    stage: str = ""  # of a cascade; "": a whole prediction


def compare_systems(
    names: tuple[str, ...], split: str, output: str, truth: Truth | None, group: Ranks, workers: int = 0
) -> None:
    """Print the differences of A and B, and write them to output/comparison.json. All processes must call it.

    names    A and B: folders with cases.csv, runs with evaluation/SPLIT/cases.csv or, with `truth`, label maps
    truth    what label maps are scored against first; their tables become output/a and output/b

    Raises MissingInput / InputError for tables that are missing or of different cases.
    """
    if len(names) != 2 or (truth and not output):
        raise InputError("compare=[A,B] takes two folders; with truth=DIR it also needs output=DIR.")
    folders = [
        _scored(name, letter, split, output, truth, group, workers) for name, letter in zip(names, "ab", strict=True)
    ]
    if group.rank:
        return
    a, b = (read_cases(folder / "cases.csv") for folder in folders)
    of_a, of_b = (_origin_of(folder / "summary.json") for folder in folders)
    if len({of_a.data, of_b.data} - {"unknown"}) > 1:
        raise InputError(f"compare: A was scored on {of_a.data} cases, B on {of_b.data}. Score both on the same cases.")

    notes = []
    if of_a.stage != of_b.stage:
        notes.append(f"A is {of_a.stage or 'a whole prediction'}, B {of_b.stage or 'a whole prediction'}")
    if of_a.reference != of_b.reference:
        notes.append(f"A was scored against reference={of_a.reference}, B against reference={of_b.reference}")
    result = {
        "a": names[0],
        "b": names[1],
        "data": of_b.data if of_a.data == "unknown" else of_a.data,
        "cases": len(a),
        "notes": notes,
        "regions": comparison.compare(a, b, names),
        "definition": comparison.NOTE,
    }
    if output:
        Path(output).mkdir(parents=True, exist_ok=True)
        files.write_json(Path(output) / "comparison.json", result)
    print(comparison.as_text(result))


def _scored(name: str, letter: str, split: str, output: str, truth: Truth | None, group: Ranks, workers: int) -> Path:
    """Return the folder with the tables of A or B; label maps are scored into output/LETTER first."""
    for folder in (Path(name), Path(name) / "evaluation" / split):
        if (folder / "cases.csv").is_file():
            return folder
    if truth is None:
        raise MissingInput(
            f"compare={name}: no cases.csv there, nor in evaluation/{split}/. Evaluate it first, or add truth=DIR "
            "output=DIR where it is a folder of label maps."
        )
    folder = Path(output) / letter
    score_folder(Path(name), truth, folder, group, workers, "compare")
    return folder


def _origin_of(path: Path) -> _Origin:
    if not path.is_file():
        return _Origin()
    summary = files.read_json(path)
    if "data" not in summary:
        raise InputError(f"{path}: cannot be read, it has no data. Run evaluate again.")
    return _Origin(summary["data"], summary.get("reference", "file"), summary.get("stage", ""))
