"""Score a folder of label maps, made by any system, against annotations; score annotators against each other."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

from kits_dist.distributed.ranks import Ranks
from kits_dist.evaluation.case_scores import Job, Reference, score_job, score_rater_job
from kits_dist.evaluation.held_out import case_folders, select_test_cases
from kits_dist.evaluation.metrics import CaseScore
from kits_dist.evaluation.score_jobs import require_scores, score_jobs
from kits_dist.evaluation.summary import summarize
from kits_dist.evaluation.tables import print_summary, write_tables
from kits_dist.imaging.datasets import MARKER, data_kind
from kits_dist.imaging.predictions import find_predictions, find_truths, find_unpredicted
from kits_dist.labels import PLAIN, REGIONS, scored_regions
from kits_dist.utils import files


class Truth(NamedTuple):
    """The annotations of a folder, and how label maps are scored against them."""

    folder: Path
    reference: Reference = "file"
    store: str = ""  # score the test cases of this store alone
    regions: tuple[str, ...] = ()  # that the label maps can hold; (): all
    missing: Literal["error", "zero"] = "error"  # a case without a label map
    with_poster: bool = False  # print the poster's measure, too


def score_folder(
    folder: Path,
    truth: Truth,
    output: Path,
    group: Ranks,
    workers: int = 0,
    key: str = "predictions",
    title: str = "",
) -> None:
    """Write the tables of the label maps in `folder` to `output`, and print them. All processes must call it.

    key     argument that named the folder, for messages
    title   above the table

    Raises MissingInput / InputError for folders that do not match, JobFailed where a case cannot be scored.
    """
    truths = find_truths(truth.folder) if truth.reference == "file" else case_folders(truth.folder, "truth")
    predictions = find_predictions(folder, truths, key)
    if truth.store:
        truths = select_test_cases(truths, truth.store, truth.folder)
        predictions = {case: path for case, path in predictions.items() if case in truths}
    about = {
        "reference": truth.reference,
        "missing": truth.missing,
        "missing_cases": find_unpredicted(predictions, truths, folder, truth.missing, key, not truth.store),
    }
    regions = _scored(truth)
    jobs = [Job(case, predictions.get(case), path, regions, truth.reference) for case, path in sorted(truths.items())]
    _score(score_job, jobs, truth, output, group, workers, about, title)


def score_raters(truth: Truth, output: Path, group: Ranks, workers: int = 0) -> None:
    """Score each annotator of a KiTS21 folder against the majority of the others. All processes must call it.

    Raises MissingInput / InputError for another folder, JobFailed where a case cannot be scored.
    """
    cases = select_test_cases(case_folders(truth.folder, "raters"), truth.store, truth.folder)
    jobs = [Job(case, None, path, _scored(truth)) for case, path in sorted(cases.items())]
    about = {"reference": "others", "scored": "each annotator against the majority of the others"}
    _score(score_rater_job, jobs, truth, output, group, workers, about, about["scored"])


def _scored(truth: Truth) -> dict[str, tuple[int, ...]]:
    return scored_regions(truth.regions) if truth.regions else REGIONS | PLAIN


def _score(
    function: Callable[[Job], CaseScore | str],
    jobs: list[Job],
    truth: Truth,
    output: Path,
    group: Ranks,
    workers: int,
    about: dict[str, Any],
    title: str,
) -> None:
    files.make_folder(output, "output")
    results = score_jobs(function, group.share(jobs), group, workers)
    if results is None:
        return
    scores = require_scores(results)
    # without a mark nothing is known of the cases: label maps may come from anywhere
    data = data_kind(truth.folder) if (truth.folder / MARKER).is_file() else "unknown"
    summary = summarize(scores, data, "test" if truth.store else "folder") | about
    write_tables(output, scores, summary)
    print_summary(summary, output, truth.with_poster, title)
