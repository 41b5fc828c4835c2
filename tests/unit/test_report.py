import json

import numpy as np
import pytest

from kits_dist import report
from kits_dist.evaluation.case_scores import score_case
from kits_dist.evaluation.summary import summarize
from kits_dist.evaluation.tables import write_tables
from kits_dist.figures.contours import save_png
from kits_dist.labels import REGIONS
from kits_dist.utils.errors import InputError, MissingInput


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
    assert "data: phantom" in page and "no number here is a KiTS result" in page and "not a medical device" in page
    # Dice 0 (nothing found), 2*8/(8+16) (half), 1: mean 0.556
    assert "<b>0.556</b>" in page
    assert page.index("case_0</td><td>0.000") < page.index("case_1</td><td>0.667") < page.index("case_2</td><td>1.000")
    assert "data:image/png;base64," in page and page.count("<svg") == 4
    assert "<script>" not in page and "http" not in page.replace("http-equiv", "")  # self-contained, escaped


def test_images_may_be_left_out(run):
    report.main(report.Args(run=str(run), images=False))
    assert "data:image/png" not in (run / "report.html").read_text()


def test_it_says_whether_it_holds_patient_images(run):
    about = run / "environment.json"
    about.write_text(about.read_text().replace("phantom", "kits"))
    report.main(report.Args(run=str(run)))
    assert "<b>contains patient images</b> (images=false leaves them out)" in (run / "report.html").read_text()
    report.main(report.Args(run=str(run), images=False))
    page = (run / "report.html").read_text()
    assert "contains no patient images" in page and "data:image/png" not in page


def test_all_pictures_of_an_evaluation_are_in_the_page_in_order(run):
    for name in ("surfaces", "contours"):
        save_png(run / "evaluation" / "test" / f"{name}.png", np.full((8, 8, 3), len(name), np.uint8))
    report.main(report.Args(run=str(run)))
    page = (run / "report.html").read_text()
    titles = ["Worst, median and best case", "The same cases in three dimensions", "Slices of the first cases"]
    assert page.count("data:image/png;base64,") == 3
    places = [page.index(f"{title}") for title in titles]
    assert places == sorted(places)


def test_rules_that_were_chosen_are_shown_with_their_gain(run):
    row = {"rule": "min_tumor_ml", "value": 0.5, "dice": 0.61, "gain": 0.02}
    about = {
        "rules": {"min_tumor_ml": 0.5},
        "step": 7,
        "val": {"cases": 6, "before": 0.59, "after": 0.61},
        "alone": [row, row | {"rule": "two_kidneys", "value": True, "gain": -0.01}],
        "test": {"cases": 5, "before": 0.5, "after": 0.49},
    }
    (run / "postprocess.json").write_text(json.dumps(about))
    summary = run / "evaluation" / "test" / "summary.json"
    summary.write_text(json.dumps(json.loads(summary.read_text()) | {"tta": "flip", "postprocess": about["rules"]}))
    report.main(report.Args(run=str(run)))
    page = (run / "report.html").read_text()
    assert "chosen on val (6 cases, weights of step 7)" in page
    assert "min_tumor_ml=0.5</td><td>0.6100</td><td>+0.0200" in page
    assert "two_kidneys</td><td>0.6100</td><td>-0.0100" in page
    assert "test 0.5000 to 0.4900, scored after the choice" in page
    assert "Predicted with tta=flip" in page and "After post-processing chosen on val:" in page
    (run / "postprocess.json").write_text(json.dumps(about | {"alone": [{"rule": "x"}]}))
    with pytest.raises(InputError, match="damaged tables .*Run evaluate again, and postprocess"):
        report.main(report.Args(run=str(run)))


def test_a_run_without_evaluation_says_how(run):
    (run / "evaluation" / "test" / "summary.json").unlink()
    report.main(report.Args(run=str(run)))
    assert "Not evaluated yet: python -m kits_dist.evaluate" in (run / "report.html").read_text()


def test_what_is_no_run_is_refused(tmp_path, run):
    with pytest.raises(MissingInput, match="no config.yaml there"):
        report.main(report.Args(run=str(tmp_path)))
    (run / "environment.json").write_text("{")
    with pytest.raises(InputError, match="environment.json: cannot be read"):
        report.main(report.Args(run=str(run)))
