"""Check a data set before hours are spent on it: `python -m kits_dist.audit source=DIR`.

Prints a page of what was found, and writes all of it to audit.json and a picture of every case to audit.png.
Exit code 1 when a case cannot be used. Several folders: source=[kits19,kits23]
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kits_dist import cli
from kits_dist.cli import MISSING
from kits_dist.data.intensity import Window
from kits_dist.figures.contours import THUMBNAIL_PX, Thumbnail, contact_sheet, draw_contours, save_png
from kits_dist.imaging.checks import (
    SEVERITIES,
    CheckedCase,
    Finding,
    ScanFacts,
    check_case,
    find_duplicates,
    format_findings,
    unusable_finding,
)
from kits_dist.imaging.datasets import CaseFiles, CaseList, LabelChoice, find_all_cases
from kits_dist.labels import slice_with_most_tumor
from kits_dist.utils import files
from kits_dist.utils.errors import InputError, JobFailed
from kits_dist.utils.parallel import run_all
from kits_dist.utils.text import parse_folders

MAX_ROWS, MAX_THUMBS = 20, 120
GREY = Window(-150, 250)  # HU: soft tissue with fat still seen


@dataclass(frozen=True)
class Args:
    source: str = MISSING
    """Folder of cases: KiTS19, KiTS21, KiTS23 or nnU-Net raw layout; several: [A,B]."""
    labels: LabelChoice = "majority"
    """Which of KiTS21's aggregated labels: majority, and, or."""
    output: str = ""
    """Where audit.json and audit.png go; default: the (first) source folder."""
    workers: int = 0
    """Processes; 0 takes one per core."""


class Result(NamedTuple):
    facts: ScanFacts | None  # None: not usable
    findings: list[Finding]
    picture: np.ndarray | None


def main(args: Args) -> None:
    source = find_all_cases(args.source, args.labels)
    output = Path(args.output) if args.output else parse_folders(args.source, "source")[0]
    _check_writable(output)
    print(f"{len(source.cases)} cases, {source.description}")
    for note in source.notes:
        print(f"note     {note}")
    results = {case.case_id: result for case, result in run_all(_look, source.cases, "audit", args.workers)}
    facts = {case_id: result.facts for case_id, result in sorted(results.items()) if result.facts}
    findings = [finding for result in results.values() for finding in result.findings]
    findings += find_duplicates({case_id: known.voxels_sha256 for case_id, known in facts.items()})
    worst = {case_id: _worst(case_id, findings) for case_id in results}
    order = sorted(results, key=lambda case_id: (_rank(worst[case_id]), case_id))

    print("\n".join([*_table(order, facts, worst), *format_findings(findings)]))
    _write_json(output / "audit.json", source, facts, findings, worst)
    thumbs = [
        Thumbnail(
            results[case_id].picture, _caption(case_id, findings, facts.get(case_id), worst[case_id]), worst[case_id]
        )
        for case_id in order[:MAX_THUMBS]
    ]
    title = f"{len(order)} cases, {source.description}"
    if len(order) > MAX_THUMBS:
        title += f"; {len(order) - MAX_THUMBS} without the worst findings are left out"
    save_png(output / "audit.png", contact_sheet(thumbs, title))
    bad = sorted(case_id for case_id in results if worst[case_id] == "error")
    print(f"{len(results) - len(bad)} cases can be used, {len(bad)} cannot; everything: {output}/audit.json, audit.png")
    if bad:
        raise JobFailed(
            f"{len(bad)} of {len(results)} cases cannot be used: {', '.join(bad)}. Mend them, or leave them out of "
            f"prepare: skip=[{','.join(bad)}]"
        )


def _look(case: CaseFiles) -> Result:
    try:
        examined = check_case(case)
    except InputError as error:
        return Result(None, [unusable_finding(case.case_id, error)], None)
    return Result(examined.facts, examined.findings, _thumbnail(examined))


def _thumbnail(examined: CheckedCase) -> np.ndarray:
    """The slice with the most tumor, else the most of any label."""
    label = examined.label.array
    index = slice_with_most_tumor(label)
    levels = GREY.to_levels(examined.image.array[index])
    grey = (levels.astype(np.float32) * 255 / GREY.levels).astype(np.uint8)
    return draw_contours(grey, label[index], THUMBNAIL_PX)


def _check_writable(output: Path) -> None:
    """Before hours are spent, not after."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output):
            pass
    except OSError as error:
        raise InputError(
            f"{output}: audit.json cannot be written there ({error.strerror}). Name another folder: output=DIR"
        ) from error


def _rank(severity: str) -> int:
    return SEVERITIES.index(severity) if severity in SEVERITIES else len(SEVERITIES)


def _worst(case_id: str, findings: list[Finding]) -> str:
    """error, warning, or nothing: a note is no fault."""
    said = {finding.severity for finding in findings if finding.case_id == case_id}
    return next((severity for severity in ("error", "warning") if severity in said), "")


def _table(order: list[str], facts: dict[str, ScanFacts], worst: dict[str, str]) -> list[str]:
    """A page, not a wall: the worst cases first, then one line for the rest."""
    rows = [("case", "slices", "H x W", "spacing mm", "axes", "HU", "kidney", "tumor", "cyst ml", "")]
    rows += [_row(case_id, facts.get(case_id), worst[case_id]) for case_id in order[:MAX_ROWS]]
    wide = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    left = (0, 4, len(wide) - 1)
    lines = [
        "  ".join(c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(row, wide, strict=True)))
        for row in rows
    ]
    lines = [line.rstrip() for line in lines]
    if len(order) > MAX_ROWS:
        lines.append(f"... and {len(order) - MAX_ROWS} more, in audit.json")
    return lines + ([_ranges(list(facts.values()))] if facts else [])


def _row(case_id: str, facts: ScanFacts | None, worst: str) -> tuple[str, ...]:
    if facts is None:
        return (case_id, *[""] * 8, worst)
    (d, h, w), spacing, ml = facts.shape, facts.spacing_mm, facts.ml
    return (
        case_id,
        str(d),
        f"{h}x{w}",
        " ".join(f"{n:.2f}" for n in spacing),
        facts.axis_codes,
        f"{facts.hu[0]:.0f}..{facts.hu[1]:.0f}",
        *(f"{ml[name]:.1f}" for name in ("kidney", "tumor", "cyst")),
        worst,
    )


def _ranges(facts: list[ScanFacts]) -> str:
    def span(values: list[float], form: str) -> str:
        return f"{min(values):{form}} to {max(values):{form}}"

    slices, pixels = span([f.shape[0] for f in facts], "d"), span([f.spacing_mm[1] for f in facts], ".2f")
    distance = span([f.spacing_mm[0] for f in facts], ".2f")
    tumor = float(np.median([f.ml["tumor"] for f in facts]))
    return (
        f"{len(facts)} readable: {sum(f.shape[0] for f in facts)} slices, {slices} a case, {distance} mm apart; pixels "
        f"{pixels} mm; tumor median {tumor:.0f} ml"
    )


def _caption(case_id: str, findings: list[Finding], facts: ScanFacts | None, worst: str) -> str:
    """The case, and below it what is wrong, or how many slices it has."""
    kind = next((f.kind for f in findings if (f.case_id, f.severity) == (case_id, worst)), "")
    if worst:
        return f"{case_id}\n{worst}: {kind}"
    return f"{case_id}\n{facts.shape[0]} x {facts.spacing_mm[0]:.1f} mm"


def _write_json(
    path: Path, source: CaseList, facts: dict[str, ScanFacts], findings: list[Finding], worst: dict[str, str]
) -> None:
    files.write_json(
        path,
        {
            "data": source.data,
            "layout": source.layout,
            "labels": source.labels,
            "left_out": source.notes,
            "cases": [
                {"case_id": case_id, "worst": worst[case_id] or "ok"}
                | (facts[case_id]._asdict() if case_id in facts else {})
                for case_id in sorted(worst)
            ],
            "findings": [f._asdict() for f in sorted(findings, key=lambda f: (f.case_id, _rank(f.severity), f.kind))],
        },
    )


if __name__ == "__main__":
    cli.run(main, Args)
