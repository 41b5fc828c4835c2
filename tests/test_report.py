import json
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from kits_dist import report
from kits_dist.drawing import save_png
from kits_dist.errors import InputError, MissingInput
from kits_dist.evaluation import score_case
from kits_dist.labels import REGIONS
from kits_dist.summary import summarize
from kits_dist.tables import write_tables


@pytest.fixture
def run(tmp_path):
    """The files that train and evaluate leave, with scores known by hand."""
    run = tmp_path / "run"
    output = run / "evaluation" / "test"
    truth = np.zeros((2, 4, 4), np.uint8)
    truth[:, :2] = 2
    scores = [
        score_case(f"case_{k}", np.where(np.arange(4)[:, None] < k, truth, 0), truth, (10, 10, 10), REGIONS)
        for k in range(3)
    ]
    write_tables(output, scores, summarize(scores, "phantom", "test"))
    save_png(output / "panel.png", np.zeros((8, 8, 3), np.uint8))
    (run / "config.yaml").write_text("optim: {lr: 0.001}  # <script>\n")
    (run / "environment.json").write_text(json.dumps({"data": "phantom", "gpu": None, "torch": "2"}))
    lines = [{"step": s, "train/loss": 1 / s, "perf/images_per_s": 100.0, "perf/data_wait": 0.01} for s in (1, 2, 3)]
    lines.append({"step": 3, "val/loss": 0.5, "val/dice_grid/tumor": 0.4})
    (run / "log.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return run


def test_the_page_holds_scores_worst_cases_pictures_and_what_the_data_was(run):
    report.main(report.Args(run=str(run)))
    page = (run / "report.html").read_text()
    assert "data: phantom" in page and "no figure here is a KiTS result" in page and "not a medical device" in page
    # Dice 0 (nothing found), 2*8/(8+16) (half), 1: mean 0.556
    assert "<b>0.556</b>" in page
    assert page.index("case_0</td><td>0.000") < page.index("case_1</td><td>0.667") < page.index("case_2</td><td>1.000")
    assert "data:image/png;base64," in page and page.count("<svg") == 4
    assert "<script>" not in page and "http" not in page.replace("http-equiv", "")  # self-contained, escaped


def test_images_may_be_left_out(run):
    report.main(report.Args(run=str(run), images=False))
    assert "data:image/png" not in (run / "report.html").read_text()


def test_a_run_without_evaluation_says_how(run):
    (run / "evaluation" / "test" / "summary.json").unlink()
    report.main(report.Args(run=str(run)))
    assert "Not evaluated yet: python -m kits_dist.evaluate" in (run / "report.html").read_text()


def test_a_chart_is_in_the_right_place():
    svg = ET.fromstring(report.line_chart({"a": [(0, 0.0), (10, 1.0)]}, width=100, height=100))
    (line,) = [node for node in svg if node.tag == "polyline"]
    first, last = (tuple(map(float, p.split(","))) for p in line.get("points").split())
    assert first == (48, 76) and last[0] == 92 and 28 < last[1] < 32  # 5 % of room above the highest point


def test_what_is_no_run_is_refused(tmp_path, run):
    with pytest.raises(MissingInput, match="no config.yaml there"):
        report.main(report.Args(run=str(tmp_path)))
    (run / "environment.json").write_text("{")
    with pytest.raises(InputError, match="environment.json: cannot be read"):
        report.main(report.Args(run=str(run)))
