"""Check a data set before training on it: `python -m kits_dist.audit source=DIR`.

Prints a page of findings, and writes all of them to audit.json and a thumbnail of every case to audit.png.
Exit code 1 when a case cannot be used. Several folders: source=[kits19,kits23]
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kits_dist import cli
from kits_dist.cli import MISSING
from kits_dist.data.intensity import Window
from kits_dist.figures.contours import THUMBNAIL_PX, Thumbnail, contact_sheet, draw_contours, save_png
from kits_dist.imaging.audit_report import AuditedCase, as_json, format_table
from kits_dist.imaging.checks import CheckedCase, check_case, find_duplicates, format_findings, unusable_finding
from kits_dist.imaging.datasets import CaseFiles, LabelChoice, find_all_cases
from kits_dist.labels import slice_with_most_tumor
from kits_dist.utils.errors import InputError, JobFailed
from kits_dist.utils.files import make_folder, write_json
from kits_dist.utils.parallel import run_all
from kits_dist.utils.text import parse_folders

MAX_ROWS, MAX_THUMBS = 20, 120
DISPLAY = Window(-150, 250)  # HU: soft tissue, with fat still visible


@dataclass(frozen=True)
class Args:
    """Arguments of the program."""

    source: str = MISSING
    """Folder of cases: KiTS19, KiTS21, KiTS23 or nnU-Net raw layout; several: [A,B]."""
    labels: LabelChoice = "majority"
    """Which of KiTS21's aggregated labels: majority, and, or."""
    output: str = ""
    """Where audit.json and audit.png go; default: the (first) source folder, or ./audit where that is read-only."""
    workers: int = 0
    """Processes; 0 takes one per core, as far as the memory goes."""


def main(args: Args) -> None:
    """Check every case, then print and write the report. Raises JobFailed when a case cannot be used."""
    source = find_all_cases(args.source, args.labels)
    output, elsewhere = _output(args)
    about = f"{len(source.cases)} cases, {source.description}"
    print(about)
    for note in [*source.notes, *elsewhere]:
        print(f"note     {note}")

    results = [result for _, result in run_all(_audit, source.cases, "audit", args.workers)]
    thumbnails = {case.case_id: thumbnail for case, thumbnail in results}
    duplicates = find_duplicates({case.case_id: case.facts.voxels_sha256 for case, _ in results if case.facts})
    cases = [
        case._replace(findings=[*case.findings, *(found for found in duplicates if found.case_id == case.case_id)])
        for case, _ in results
    ]
    cases.sort(key=lambda case: case.rank)

    print("\n".join([*format_table(cases, MAX_ROWS), *format_findings(f for case in cases for f in case.findings)]))
    write_json(output / "audit.json", as_json(source, cases))
    thumbs = [Thumbnail(thumbnails[case.case_id], case.caption, case.severity) for case in cases[:MAX_THUMBS]]
    left_out = len(cases) - len(thumbs)
    title = f"{about}; {left_out} without the worst findings are left out" if left_out else about
    save_png(output / "audit.png", contact_sheet(thumbs, title))

    bad = [case.case_id for case in cases if case.severity == "error"]
    print(f"{len(cases) - len(bad)} cases can be used, {len(bad)} cannot; everything: {output}/audit.json, audit.png")
    if bad:
        raise JobFailed(
            f"{len(bad)} of {len(cases)} cases cannot be used: {', '.join(bad)}. Repair them, or leave them out of "
            f"prepare: skip=[{','.join(bad)}]"
        )


def _output(args: Args) -> tuple[Path, list[str]]:
    """Return where the report goes, and a note where that is not the source, which may be read-only."""
    if args.output:
        make_folder(Path(args.output), "output")
        return Path(args.output), []
    source = parse_folders(args.source, "source")[0]
    try:
        make_folder(source, "source")
        return source, []
    except InputError:
        make_folder(Path("audit"), "output")
        return Path("audit"), [f"{source} cannot be written to: the report goes to {Path('audit').absolute()}"]


def _audit(files: CaseFiles) -> tuple[AuditedCase, np.ndarray | None]:
    """Return the case and its thumbnail, None where it cannot be used."""
    try:
        checked = check_case(files)
    except InputError as error:
        return AuditedCase(files.case_id, None, [unusable_finding(files.case_id, error)]), None
    return AuditedCase(files.case_id, checked.facts, checked.findings), _thumbnail(checked)


def _thumbnail(case: CheckedCase) -> np.ndarray:
    """Draw the slice with the most tumor, or the most of any label where there is no tumor."""
    label = case.label.array
    index = slice_with_most_tumor(label)
    levels = DISPLAY.to_levels(case.image.array[index])
    gray = (levels.astype(np.float32) * 255 / DISPLAY.levels).astype(np.uint8)
    return draw_contours(gray, label[index], THUMBNAIL_PX)


if __name__ == "__main__":
    cli.run(main, Args)
