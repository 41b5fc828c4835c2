"""Check a data set before hours are spent on it: `python -m kits_dist.audit source=DIR`.

Prints what was found per case and writes audit.json. Exit code 1 when a case cannot be used.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from kits_dist import cli, files
from kits_dist.cli import MISSING
from kits_dist.data.audit import audit_case
from kits_dist.data.sources import find_cases
from kits_dist.errors import JobFailed
from kits_dist.parallel import run_all


@dataclass(frozen=True)
class Args:
    source: str = MISSING  # folder of cases: KiTS19, KiTS21, KiTS23 or nnU-Net raw layout
    output: str = ""  # where audit.json goes; default: the source folder
    workers: int = 0  # processes; 0 takes one per core


def main(args: Args) -> None:
    source = find_cases(Path(args.source))
    print(f"{len(source.cases)} cases, {source.layout} layout, data: {source.data}")
    findings = [f for _, found in run_all(audit_case, source.cases, "audit", args.workers) for f in found]
    findings.sort()
    for case_id, severity, message in findings:
        if severity != "note":
            print(f"{severity:<8} {case_id}  {message}")
    for message, count in Counter(f.message for f in findings if f.severity == "note").most_common(10):
        print(f"note     {count} cases: {message}")
    output = Path(args.output or args.source) / "audit.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(
        output,
        {
            "data": source.data,
            "layout": source.layout,
            "cases": [case.case_id for case in source.cases],
            "findings": [finding._asdict() for finding in findings],
        },
    )
    bad = {f.case_id for f in findings if f.severity == "error"}
    print(f"{len(source.cases) - len(bad)} cases can be used, {len(bad)} cannot; all findings: {output}")
    if bad:
        raise JobFailed(f"{len(bad)} of {len(source.cases)} cases cannot be used: {', '.join(sorted(bad))}.")


if __name__ == "__main__":
    cli.run(main, Args)
