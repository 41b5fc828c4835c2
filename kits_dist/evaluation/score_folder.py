"""Score a folder of label maps, made by any system, against annotations."""

from pathlib import Path
from typing import Literal, NamedTuple

from kits_dist.distributed.ranks import Ranks
from kits_dist.evaluation.case_scores import Job, Reference, score_job
from kits_dist.evaluation.score_jobs import require_scores, score_jobs
from kits_dist.evaluation.summary import summarize
from kits_dist.evaluation.tables import print_summary, write_tables
from kits_dist.evaluation.truth_folders import case_folders, data_of, select_test_cases
from kits_dist.imaging.predictions import find_predictions, find_truths, find_unpredicted
from kits_dist.labels import PLAIN, REGIONS, scored_regions


class Truth(NamedTuple):
    """The annotations of a folder, and how label maps are scored against them."""

    folder: Path
    reference: Reference = "file"
    store: str = ""  # score the test cases of this store alone
    regions: tuple[str, ...] = ()  # that the label maps can hold; (): all
    missing: Literal["error", "zero"] = "error"  # a case without a label map


def score_folder(
    folder: Path, truth: Truth, output: Path, group: Ranks, workers: int = 0, key: str = "predictions"
) -> None:
    """Write the tables of the label maps in `folder` to `output`, and print them. All processes must call it.

    key   argument that named the folder, for messages

    Raises MissingInput / InputError for folders that do not match, JobFailed where a case cannot be scored.
    """
    truths = find_truths(truth.folder) if truth.reference == "file" else case_folders(truth.folder, "truth")
    predictions = find_predictions(folder, truths, key)
    if truth.store:
        truths = select_test_cases(truths, truth.store, truth.folder)
        predictions = {case: path for case, path in predictions.items() if case in truths}
    missing = find_unpredicted(predictions, truths, folder, truth.missing, key)

    regions = scored_regions(truth.regions) if truth.regions else REGIONS | PLAIN
    jobs = [Job(case, predictions.get(case), path, regions, truth.reference) for case, path in sorted(truths.items())]
    results = score_jobs(score_job, group.share(jobs), group, workers)
    if results is None:
        return

    scores = require_scores(results)
    summary = summarize(scores, data_of(truth.folder), "test" if truth.store else "folder")
    summary |= {"reference": truth.reference, "missing": truth.missing, "missing_cases": missing}
    write_tables(output, scores, summary)
    print_summary(summary, output)
