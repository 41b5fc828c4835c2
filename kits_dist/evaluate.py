"""Score a run on held-out cases, or any folder of label maps against the truth; compare two systems.

python -m kits_dist.evaluate run=RUN_DIR split=test
python -m kits_dist.evaluate run=[PHASE1,PHASE2] split=test      a cascade; phase 1 alone and phase 2 alone beside it
python -m kits_dist.evaluate predictions=DIR truth=DIR output=DIR [reference=samples]
python -m kits_dist.evaluate compare=[A,B] [truth=DIR] [output=DIR]
python -m kits_dist.evaluate raters=DIR output=DIR

Several processes: workers=N, or `accelerate launch ... -m kits_dist.evaluate`; the tables are the same.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from kits_dist import cli
from kits_dist.config import Config
from kits_dist.data.store import Case, Store, array_path
from kits_dist.distributed import ranks
from kits_dist.distributed.ranks import Ranks
from kits_dist.evaluation import comparison
from kits_dist.evaluation.case_scores import Job, Reference, score_job, score_raters
from kits_dist.evaluation.held_out import held_out
from kits_dist.evaluation.metrics import CaseScore
from kits_dist.evaluation.summary import summarize
from kits_dist.evaluation.tables import as_text, read_cases, write_tables
from kits_dist.figures.cases import draw_cases
from kits_dist.figures.contours import PanelRow, contour_panel, save_png
from kits_dist.imaging.datasets import MARKER, data_kind, find_cases
from kits_dist.imaging.nifti import write_nifti
from kits_dist.imaging.predictions import find_predictions, find_truths, pair
from kits_dist.inference.measurements import measure_label_map
from kits_dist.inference.postprocessing import clean, load_rules
from kits_dist.labels import PLAIN, REGIONS, scored_regions, slice_with_most_tumor
from kits_dist.utils import files
from kits_dist.utils.errors import InputError, JobFailed, MissingInput
from kits_dist.utils.parallel import progress_bar, run_all
from kits_dist.utils.text import listed

if TYPE_CHECKING:
    from kits_dist.inference.predictor import CascadeStage, Predictor

WORTH_S = 5  # other processes are started where they save more than they cost


@dataclass(frozen=True)
class Args:
    run: str = ""
    """Folder of a trained run: predict a split, score it; several as [A,B]; a cascade as [PHASE1,PHASE2]."""
    split: Literal["test", "val"] = "test"
    """Which cases; val chose the checkpoint, so report test."""
    store: str = ""
    """The run's store, where it has moved; with truth= or raters=: score its test cases alone."""
    predictions: str = ""
    """Folder of label maps to score (CASE.nii.gz, MONAI's CASE/CASE_seg.nii.gz), any system's."""
    truth: str = ""
    """Folder of cases, or of CASE.nii.gz files."""
    output: str = ""
    """Where the tables of predictions=, compare=, raters= and of several runs go."""
    compare: tuple[str, ...] = ()
    """Two of: run folder, folder with cases.csv, with truth= folder of label maps."""
    raters: str = ""
    """KiTS21 folder with segmentations/: score each annotator against the majority of the others."""
    reference: Reference = "file"
    """file: the case's label map; samples, majority: made of truth=/CASE/segmentations/."""
    tta: Literal["none", "flip"] = "none"
    """flip: the mean with the mirrored slice's prediction; takes twice as long."""
    precision: Literal["auto", "fp32", "tf32", "fp16", "bf16"] = "auto"
    """Of the networks, as kits_dist.predict has it."""
    compile: bool = False
    """Torch.compile the networks: a minute once, worth it for many cases on a GPU."""
    fusion: str = ""
    """Weights of several runs or planes, written by kits_dist.fuse; empty: the mean."""
    postprocess: bool = True
    """Apply the rules that kits_dist.postprocess chose for this run."""
    rules: str = ""
    """Of several runs: the postprocess.json that was chosen for exactly these."""
    regions: tuple[str, ...] = ()
    """What predictions= can hold, as [kidney_and_mass]; default: everything."""
    missing: Literal["error", "zero"] = "error"
    """A true case without prediction: refuse, or 0 in every mean."""
    panel: int = 6
    """Test slices drawn with contours."""
    batch_size: int = 16
    """Slices at once."""
    workers: int = 0
    """Processes that score, each holding one case in memory; 0 takes one per core where it pays off."""

    def __post_init__(self) -> None:
        asked = [key for key in ("run", "predictions", "compare", "raters") if getattr(self, key)]
        if len(asked) != 1:
            raise InputError(
                "name one of run=RUN_DIR, predictions=DIR truth=DIR output=DIR, compare=[A,B], raters=DIR output=DIR. "
                "All keys: help"
            )
        if self.predictions and not (self.truth and self.output):
            raise InputError("predictions=DIR also needs truth=DIR and output=DIR.")
        if self.raters and not self.output:
            raise InputError("raters=DIR also needs output=DIR.")
        if self.compare and (len(self.compare) != 2 or (self.truth and not self.output)):
            raise InputError("compare=[A,B] takes two folders; with truth=DIR it also needs output=DIR.")
        if self.reference != "file" and not self.truth:
            raise InputError(f"reference={self.reference} is made of truth=DIR/CASE/segmentations/. Name truth=DIR")
        if unknown := set(self.regions) - set(REGIONS):
            raise InputError(f"regions={sorted(unknown)}: choose from {list(REGIONS)}.")
        if self.workers < 0:
            raise InputError(f"workers={self.workers} must be 0 (one per core) or more.")


def main(args: Args) -> None:
    with ranks.joined() as group:
        if args.run:
            _evaluate_run(args, group)
        elif args.predictions:
            _evaluate_folder(args, group, Path(args.predictions), Path(args.output))
        elif args.raters:
            _evaluate_raters(args, group)
        else:
            _compare(args, group)


def _evaluate_run(args: Args, group: Ranks) -> None:
    from kits_dist.inference.predictor import Predictor  # torch takes seconds, and the processes that score need none

    group.take_device()
    how = {"precision": args.precision, "compiled": args.compile}
    predictor = Predictor(args.run, args.batch_size, args.tta, args.fusion, annotated=True, **how)
    store, case_ids = held_out(predictor, args.split, args.store)
    runs = [member.run for member in predictor.members]
    rules, said = load_rules(runs, predictor.step, args.postprocess, args.rules)
    truths = {} if args.reference == "file" else _only(case_ids, _case_folders(Path(args.truth), "truth"), args)
    stages = [_StageScores(stage, output) for stage, output in _outputs(args, predictor)]
    if group.rank == 0:
        print(said)
        for stage in stages:  # written last: without it the folder is unfinished
            (stage.output / "summary.json").unlink(missing_ok=True)
    for number in progress_bar(f"predict {args.split}", "case", items=group.share(list(range(len(case_ids))))):
        case_id = case_ids[number]
        row = store.row[case_id]
        case = store.cases[row]
        for stage, painted in zip(stages, predictor.predict_stages(store.image(row), case), strict=True):
            predicted = clean(painted, case.spacing_mm, rules)
            path = stage.add(number, case, predicted)
            if truths:
                stage.jobs.append(Job(case_id, path, truths[case_id], stage.regions, args.reference))
            else:
                label = array_path(store.path, "axial", case_id, "label")
                stage.jobs.append(Job(case_id, path, label, stage.regions, geometry=case.geometry))
            if number < args.panel:
                images = np.asarray(store.image(row)), np.asarray(store.label(row)), predicted
                stage.tiles.append((number, _largest_slice(*images, case_id, store.window.levels)))
    about = {"reference": args.reference, "step": predictor.step, "store_sha256": store.fingerprint()}
    about |= {"tta": args.tta, "precision": predictor.precision}
    about |= {"postprocess": rules.active, "runs": [run.resolve().name for run in runs]}
    if args.fusion:
        about["fusion"] = predictor.fusion
    about["tuned"] = {"checkpoint": "; ".join(dict.fromkeys(_chosen_by(one.config) for one in predictor.members))}
    gathered = [stage.gathered(args, group) for stage in stages]  # of all, before a case that cannot be scored ends it
    for stage, (results, tiles) in zip(stages, gathered, strict=True):
        if results is not None:
            _conclude_stage(stage, results, tiles, args, store, about)


class _StageScores:
    """One of the label maps that runs are judged by, and what this process has of it."""

    def __init__(self, stage: "CascadeStage", output: Path):
        self.name, self.paints, self.output = stage.name, stage.regions, output
        self.regions = scored_regions(stage.regions)
        self.jobs: list[Job] = []
        self.tiles: list[tuple[int, PanelRow]] = []
        self.findings: list[tuple[str, dict]] = []

    def add(self, number: int, case: Case, predicted: np.ndarray) -> Path:
        """Write a case's label map."""
        midline = case.body["axial"].center[1]
        self.findings.append((case.case_id, measure_label_map(predicted, case.spacing_mm, self.paints, midline)))
        path = self.output / "predictions" / f"{case.case_id}.nii.gz"
        write_nifti(path, predicted, case.geometry)
        return path

    def gathered(self, args: Args, group: Ranks) -> tuple[list[CaseScore | str] | None, list[PanelRow]]:
        """Scores, findings and pictures of all processes on rank 0; no scores elsewhere. All must call it."""
        tiles, found = group.gather(self.tiles), group.gather(self.findings)
        results = _results(score_job, self.jobs, group, args.workers)
        self.findings = found or []
        return results, [tile for _, tile in sorted(tiles or [], key=lambda pair: pair[0])]


STAGES = {
    "": "",
    "phase1": "phase 1 alone",
    "phase2": "phase 2 alone, in the boxes of the annotation: what it could do if phase 1 were perfect",
}


def _conclude_stage(
    stage: _StageScores, results: list[CaseScore | str], tiles: list[PanelRow], args: Args, store: Store, about: dict
) -> None:
    summary = summarize(_all_scored(results), store.meta["data"], args.split) | about
    summary |= {"stage": STAGES[stage.name]} if stage.name else {}
    if args.fusion:
        summary["tuned"] = summary["tuned"] | {"fusion": "by Dice of the validation cases"}
    of_case = dict(stage.findings)
    write_tables(stage.output, [one._replace(findings=of_case[one.case_id]) for one in results], summary)
    draw_cases(stage.output, store, stage.paints)
    save_png(stage.output / "panel.png", contour_panel(tiles, f"data: {summary['data']}   split: {args.split}"))
    _print(summary, stage.output)


def _chosen_by(config: Config) -> str:
    return f"by {config.optim.best_by} of the validation cases of fold {config.data.fold}"


def _outputs(args: Args, predictor: "Predictor") -> list[tuple["CascadeStage", Path]]:
    """Where each stage's tables go. A cascade of two runs belongs to its second one."""
    stages, runs = predictor.stages, [member.run for member in predictor.members]
    if len(runs) > (2 if len(stages) > 1 else 1) and not args.output:
        raise InputError(f"run={args.run} names several runs: say with output=DIR where their common scores go.")
    # another reference is another table, which the report shows beside this one
    name = args.split if args.reference == "file" else f"{args.split}_{args.reference}"
    home = next((one.run for one in predictor.members if one.config.data.box == "kidney"), runs[0])
    output = Path(args.output).resolve() if args.output else home / "evaluation" / name
    if args.output and len(stages) == 1:
        return [(stages[0], output)]
    return [(one, output.with_name(f"{output.name}_{one.name}") if one.name else output) for one in stages]


def _largest_slice(image: np.ndarray, truth: np.ndarray, predicted: np.ndarray, case_id: str, levels: int) -> PanelRow:
    """The slice with the most true tumor, or else the most true foreground: chosen by the truth, never by the score."""
    index = slice_with_most_tumor(truth)
    grey = np.clip(image[index].astype(np.float32) * 255 / levels, 0, 255).astype(np.uint8)
    return PanelRow(grey, truth[index], predicted[index], f"{case_id} slice {index}")


def _evaluate_folder(args: Args, group: Ranks, folder: Path, output: Path, key: str = "predictions") -> None:
    truth = Path(args.truth)
    truths = find_truths(truth) if args.reference == "file" else _case_folders(truth, "truth")
    predictions = find_predictions(folder, truths, key)
    if args.store:
        truths = _only(_test_cases(args), truths, args)
        predictions = {case: path for case, path in predictions.items() if case in truths}
    absent = pair(predictions, truths, folder, args.missing, key)
    regions = scored_regions(args.regions) if args.regions else REGIONS | PLAIN
    jobs = [Job(case, predictions.get(case), path, regions, args.reference) for case, path in sorted(truths.items())]
    scores = _score(score_job, group.share(jobs), group, args.workers)
    if scores is not None:
        summary = summarize(scores, _kind(truth), args.split if args.store else "folder")
        summary |= {"reference": args.reference, "missing": args.missing, "missing_cases": absent}
        write_tables(output, scores, summary)
        _print(summary, output)


def _evaluate_raters(args: Args, group: Ranks) -> None:
    folders = _case_folders(Path(args.raters), "raters")
    if args.store:
        folders = _only(_test_cases(args), folders, args)
    regions = scored_regions(args.regions) if args.regions else REGIONS | PLAIN
    jobs = [Job(case, None, path, regions) for case, path in sorted(folders.items())]
    scores = _score(score_raters, group.share(jobs), group, args.workers)
    if scores is not None:
        summary = summarize(scores, _kind(Path(args.raters)), args.split if args.store else "folder")
        summary |= {"reference": "others", "scored": "each annotator against the majority of the others"}
        write_tables(Path(args.output), scores, summary)
        _print(summary, Path(args.output))


def _test_cases(args: Args) -> list[str]:
    if args.split != "test":
        raise InputError(
            f"split={args.split}: which cases it holds depends on a run's fold. Leave split= or store= out."
        )
    cases = Store(args.store, key="store").splits.test
    if not cases:
        raise InputError(f"store={args.store} has no test cases. Leave store= out to score all cases.")
    return cases


def _only(cases: list[str], found: dict[str, Path], args: Args) -> dict[str, Path]:
    if lacking := sorted(set(cases) - set(found)):
        raise InputError(f"{args.truth or args.raters} has no {listed(lacking)}, which the split holds.")
    return {case: found[case] for case in cases}


def _score(
    function: Callable[[Job], CaseScore | str], jobs: list[Job], group: Ranks, workers: int
) -> list[CaseScore] | None:
    """Score this process' jobs; all scores in the order of cases on rank 0, None elsewhere. Raises JobFailed there when
    a case could not be scored."""
    results = _results(function, jobs, group, workers)
    return None if results is None else _all_scored(results)


def _all_scored(results: list[CaseScore | str]) -> list[CaseScore]:
    """Raises JobFailed when a case could not be scored."""
    if bad := [result for result in results if isinstance(result, str)]:
        raise JobFailed(f"no mean over fewer cases: {len(bad)} of {len(results)} could not be scored: {'; '.join(bad)}")
    return results


def _results(
    function: Callable[[Job], CaseScore | str], jobs: list[Job], group: Ranks, workers: int
) -> list[CaseScore | str] | None:
    """Of all processes in the order of cases on rank 0, with words for a case that could not be scored."""
    done: list[tuple[str, CaseScore | str]] = []
    begin = time.perf_counter()
    if not workers and jobs:  # the first case tells whether other processes pay off
        done.append((jobs[0].case_id, function(jobs[0])))
        worth = (time.perf_counter() - begin) * len(jobs) > WORTH_S
        jobs, workers = jobs[1:], group.cores if worth else 1
    if jobs:
        done += [(job.case_id, result) for job, result in run_all(function, jobs, "score", workers)]
    everyone = group.gather(done)
    return None if everyone is None else [result for _, result in sorted(everyone, key=lambda pair: pair[0])]


def _compare(args: Args, group: Ranks) -> None:
    folders = [_scored(name, letter, args, group) for name, letter in zip(args.compare, "ab", strict=True)]
    if group.rank:
        return
    tables = [read_cases(folder / "cases.csv") for folder in folders]
    (kind, reference, stage), (other_kind, other_reference, other_stage) = (
        _about(folder / "summary.json") for folder in folders
    )
    if len({kind, other_kind} - {"unknown"}) > 1:
        raise InputError(f"compare: A was scored on {kind} cases, B on {other_kind}. Score both on the same cases.")
    result = {
        "a": args.compare[0],
        "b": args.compare[1],
        "data": other_kind if kind == "unknown" else kind,
        "cases": len(tables[0]),
        "notes": [],
        "regions": comparison.compare(*tables, args.compare),
        "definition": comparison.NOTE,
    }
    if stage != other_stage:
        result["notes"].append(f"A is {stage or 'a whole prediction'}, B {other_stage or 'a whole prediction'}")
    if reference != other_reference:
        result["notes"].append(f"A was scored against reference={reference}, B against reference={other_reference}")
    if args.output:
        Path(args.output).mkdir(parents=True, exist_ok=True)
        files.write_json(Path(args.output) / "comparison.json", result)
    print(comparison.as_text(result))


def _scored(name: str, letter: str, args: Args, group: Ranks) -> Path:
    """The folder with the tables of A or B; with truth= label maps are scored into output=/a or /b first."""
    for folder in (Path(name), Path(name) / "evaluation" / args.split):
        if (folder / "cases.csv").is_file():
            return folder
    if not args.truth:
        raise MissingInput(
            f"compare={name}: no cases.csv there, nor in evaluation/{args.split}/. Evaluate it first, or add truth=DIR "
            "output=DIR where it is a folder of label maps."
        )
    folder = Path(args.output) / letter
    _evaluate_folder(args, group, Path(name), folder, "compare")
    return folder


def _about(path: Path) -> tuple[str, str, str]:
    """What the cases were, against what they were scored, and of a cascade which part."""
    if not path.is_file():
        return "unknown", "unknown", ""
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        return summary["data"], summary.get("reference", "file"), summary.get("stage", "")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: cannot be read ({type(error).__name__}: {error}). Run evaluate again.") from error


def _case_folders(folder: Path, key: str) -> dict[str, Path]:
    """{case: its folder} of a KiTS folder."""
    if not folder.is_dir():
        raise MissingInput(f"{key}={folder}: no such folder.")
    source = find_cases(folder)
    return {case.case_id: source.root / case.case_id for case in source.cases}


def _kind(folder: Path) -> str:
    """What made the cases, where the folder says it: a folder of label maps may be anybody's."""
    return data_kind(folder) if (folder / MARKER).is_file() else "unknown"


def _print(summary: dict, output: Path) -> None:
    print(as_text(summary))
    print(f"tables and pictures: {output}")


if __name__ == "__main__":
    cli.run(main, Args)
