"""Score many cases on all processes of a launch, each with worker processes where they pay off."""

import time
from collections.abc import Callable

from kits_dist.distributed.ranks import Ranks
from kits_dist.evaluation.case_scores import Job
from kits_dist.evaluation.metrics import CaseScore
from kits_dist.utils.errors import JobFailed
from kits_dist.utils.limits import affordable_workers
from kits_dist.utils.parallel import run_all

WORTH_S = 5  # seconds of scoring from which starting worker processes saves more than it costs


def score_jobs(
    function: Callable[[Job], CaseScore | str], jobs: list[Job], group: Ranks, workers: int
) -> list[CaseScore | str] | None:
    """Score the jobs of this process and gather the results of all processes, which all must call it.

    function   returns the score of a job, or a message for a case that cannot be scored
    workers    worker processes to start; 0: one per core, if the first case shows that it pays off
    returns    on rank 0 the results in the order of case ids, None elsewhere
    """
    done: list[tuple[str, CaseScore | str]] = []
    if not workers and jobs:
        begin = time.perf_counter()
        done.append((jobs[0].case_id, function(jobs[0])))
        pays_off = (time.perf_counter() - begin) * len(jobs) > WORTH_S
        jobs = jobs[1:]
        workers = affordable_workers(group.local_world) if pays_off else 1
    if jobs:
        done += [(job.case_id, result) for job, result in run_all(function, jobs, "score", workers)]
    gathered = group.gather(done)
    return None if gathered is None else [result for _, result in sorted(gathered, key=lambda pair: pair[0])]


def require_scores(results: list[CaseScore | str]) -> list[CaseScore]:
    """Return the results as scores. Raises JobFailed with the messages of the cases that could not be scored."""
    messages = [result for result in results if isinstance(result, str)]
    if messages:
        raise JobFailed(
            f"no mean over fewer cases: {len(messages)} of {len(results)} could not be scored: {'; '.join(messages)}"
        )
    return [result for result in results if isinstance(result, CaseScore)]
