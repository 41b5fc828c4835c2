"""Score the annotators of KiTS21 against each other: the agreement that a system could reach at best."""

from pathlib import Path

from kits_dist.distributed.ranks import Ranks
from kits_dist.evaluation.case_scores import Job, score_rater_job
from kits_dist.evaluation.score_jobs import require_scores, score_jobs
from kits_dist.evaluation.summary import summarize
from kits_dist.evaluation.tables import print_summary, write_tables
from kits_dist.evaluation.truth_folders import case_folders, data_of, select_test_cases
from kits_dist.labels import PLAIN, REGIONS, scored_regions


def score_raters(
    folder: Path, output: Path, group: Ranks, store: str = "", regions: tuple[str, ...] = (), workers: int = 0
) -> None:
    """Score each annotator against the majority of the others. All processes must call it.

    folder    KiTS21 folder with CASE/segmentations/
    output    folder of the tables
    store     score the test cases of this store alone
    regions   scored; (): all

    Raises MissingInput / InputError for another folder, JobFailed where a case cannot be scored.
    """
    cases = select_test_cases(case_folders(folder, "raters"), store, folder)
    scored = scored_regions(regions) if regions else REGIONS | PLAIN
    jobs = [Job(case, None, path, scored) for case, path in sorted(cases.items())]
    results = score_jobs(score_rater_job, group.share(jobs), group, workers)
    if results is None:
        return

    scores = require_scores(results)
    summary = summarize(scores, data_of(folder), "test" if store else "folder")
    summary |= {"reference": "others", "scored": "each annotator against the majority of the others"}
    write_tables(output, scores, summary)
    print_summary(summary, output)
