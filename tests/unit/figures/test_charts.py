"""Charts whose points are known."""

import xml.etree.ElementTree as ET

from kits_dist.figures.charts import fold_charts, line_chart, run_charts


def test_a_chart_is_in_the_right_place():
    svg = ET.fromstring(line_chart({"a": [(0, 0.0), (10, 1.0)]}, width=100, height=100))
    (line,) = [node for node in svg if node.tag == "polyline"]
    first, last = (tuple(map(float, p.split(","))) for p in line.get("points").split())
    assert first == (48, 76) and last[0] == 92 and 28 < last[1] < 32  # 5 % of room above the highest point


def test_a_run_has_a_chart_for_each_quantity_that_was_logged():
    lines = [{"step": 1, "train/loss": 1.0}, {"step": 2, "val/loss": 0.5, "val/dice_grid/tumor": 0.4}]
    loss, dice = run_charts(lines)
    assert loss.caption == "loss by step" and loss.svg.count("<polyline") == 2
    assert dice.caption.startswith("val/dice_grid by step") and ">tumor</text>" in dice.svg


def test_folds_share_a_chart_for_each_quantity():
    logs = {f"fold {k}": [{"step": 1, "train/loss": 1.0, "val/dice_grid/tumor": 0.4}] for k in range(2)}
    charts = fold_charts(logs)
    assert [chart.caption.split(" by step")[0] for chart in charts] == ["train/loss", "val/dice_grid/tumor"]
    assert all(chart.svg.count("<polyline") == 2 and ">fold 1</text>" in chart.svg for chart in charts)
