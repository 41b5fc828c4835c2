"""The report of `audit`: a table that fits a page, a caption per thumbnail, and the content of audit.json."""

from typing import NamedTuple

import numpy as np

from kits_dist.imaging.checks import SEVERITIES, Finding, ScanFacts
from kits_dist.imaging.datasets import CaseList

_HEADER = ("case", "slices", "H x W", "spacing mm", "axes", "HU", "kidney", "tumor", "cyst ml", "")
_LEFT_ALIGNED = (0, 4, 9)  # columns of _HEADER


class AuditedCase(NamedTuple):
    """Measurements and findings of one case."""

    case_id: str
    facts: ScanFacts | None  # None: the case cannot be used
    findings: list[Finding]

    @property
    def severity(self) -> str:
        """Return "error", "warning", or "" where there are notes at most."""
        found = {finding.severity for finding in self.findings}
        return next((severity for severity in ("error", "warning") if severity in found), "")

    @property
    def rank(self) -> tuple[int, str]:
        """Sort key: the most severe cases first, then by case id."""
        return ("error", "warning", "").index(self.severity), self.case_id

    @property
    def caption(self) -> str:
        """Return the case id, and below it the worst finding or the number of slices."""
        if self.severity or self.facts is None:
            kind = next(finding.kind for finding in self.findings if finding.severity == self.severity)
            return f"{self.case_id}\n{self.severity}: {kind}"
        return f"{self.case_id}\n{self.facts.shape[0]} x {self.facts.spacing_mm[0]:.1f} mm"


def format_table(cases: list[AuditedCase], max_rows: int) -> list[str]:
    """Format the first `max_rows` cases as rows, and summarize all of them in one last line."""
    rows = [_HEADER, *(_row(case) for case in cases[:max_rows])]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if column in _LEFT_ALIGNED else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())

    if len(cases) > max_rows:
        lines.append(f"... and {len(cases) - max_rows} more, in audit.json")
    facts = [case.facts for case in cases if case.facts]
    return [*lines, _summary(facts)] if facts else lines


def as_json(source: CaseList, cases: list[AuditedCase]) -> dict:
    """Return the content of audit.json: every case and every finding, by case id."""
    cases = sorted(cases, key=lambda case: case.case_id)
    findings = [
        finding._asdict()
        for case in cases
        for finding in sorted(case.findings, key=lambda f: (SEVERITIES.index(f.severity), f.kind))
    ]
    return {
        "data": source.data,
        "layout": source.layout,
        "labels": source.labels,
        "left_out": source.notes,
        "cases": [
            {"case_id": case.case_id, "worst": case.severity or "ok"} | (case.facts._asdict() if case.facts else {})
            for case in cases
        ],
        "findings": findings,
    }


def _row(case: AuditedCase) -> tuple[str, ...]:
    facts = case.facts
    if facts is None:
        return (case.case_id, *[""] * 8, case.severity)
    depth, height, width = facts.shape
    return (
        case.case_id,
        str(depth),
        f"{height}x{width}",
        " ".join(f"{mm:.2f}" for mm in facts.spacing_mm),
        facts.axis_codes,
        f"{facts.hu[0]:.0f}..{facts.hu[1]:.0f}",
        *(f"{facts.ml[name]:.1f}" for name in ("kidney", "tumor", "cyst")),
        case.severity,
    )


def _summary(facts: list[ScanFacts]) -> str:
    slices = [f.shape[0] for f in facts]
    distances = [f.spacing_mm[0] for f in facts]
    pixels = [f.spacing_mm[1] for f in facts]
    tumor = float(np.median([f.ml["tumor"] for f in facts]))
    return (
        f"{len(facts)} readable: {sum(slices)} slices, {min(slices)} to {max(slices)} a case, "
        f"{min(distances):.2f} to {max(distances):.2f} mm apart; "
        f"pixels {min(pixels):.2f} to {max(pixels):.2f} mm; tumor median {tumor:.0f} ml"
    )
