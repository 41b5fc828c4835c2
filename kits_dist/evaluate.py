"""Score a run on held-out cases, or any folder of label maps against the truth; compare two systems.

python -m kits_dist.evaluate run=RUN_DIR split=test
python -m kits_dist.evaluate run=[PHASE1,PHASE2] split=test      a cascade, and phase 1 alone and phase 2 alone
python -m kits_dist.evaluate predictions=DIR truth=DIR output=DIR [reference=samples]
python -m kits_dist.evaluate compare=[A,B] [truth=DIR] [output=DIR]
python -m kits_dist.evaluate raters=DIR output=DIR

Several processes: workers=N, or `accelerate launch ... -m kits_dist.evaluate`; the tables are the same.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kits_dist import cli
from kits_dist.config import PrecisionName
from kits_dist.distributed import ranks
from kits_dist.evaluation.case_scores import Reference
from kits_dist.evaluation.comparison import compare_systems
from kits_dist.evaluation.score_folder import Truth, score_folder, score_raters
from kits_dist.evaluation.score_run import run_cases, score_run
from kits_dist.imaging.checks import format_findings
from kits_dist.inference.postprocessing import load_rules
from kits_dist.inference.run_folders import run_folders
from kits_dist.labels import REGIONS
from kits_dist.utils.errors import InputError


@dataclass(frozen=True)
class Args:
    """Arguments of the command line."""

    run: str = ""
    """Folder of a trained run: predict a split, score it; several as [A,B]; a cascade as [PHASE1,PHASE2]."""
    split: Literal["test", "val"] = "test"
    """Which cases; val chose the checkpoint, so report test."""
    store: str = ""
    """The run's store, where it has moved; with truth= or raters=: score its test cases alone."""
    predictions: str = ""
    """Folder of label maps to score (CASE.nii.gz, MONAI's CASE/CASE_seg.nii.gz), from any system."""
    truth: str = ""
    """Folder of cases, or of CASE.nii.gz files."""
    output: str = ""
    """Folder for the tables of predictions=, compare=, raters= and of several runs."""
    compare: tuple[str, ...] = ()
    """Two of: run folder, folder with cases.csv, with truth= folder of label maps."""
    raters: str = ""
    """KiTS21 folder with segmentations/: score each annotator against the majority of the others."""
    reference: Reference = "file"
    """file: the case's label map; samples, majority: made of truth=/CASE/segmentations/."""
    tta: Literal["none", "flip"] = "none"
    """flip: average the predictions of each slice and its mirror image; takes twice as long."""
    precision: PrecisionName = "auto"
    """Precision of the networks, as in kits_dist.predict."""
    compile: bool = False
    """Compile the networks with torch.compile: takes a minute, pays off for many cases on a GPU."""
    fusion: str = ""
    """Weights of several runs or planes, written by kits_dist.fuse; empty: the mean."""
    postprocess: bool = True
    """Apply the rules that kits_dist.postprocess chose for this run."""
    rules: str = ""
    """For several runs: the postprocess.json that was chosen for exactly these."""
    regions: tuple[str, ...] = ()
    """Regions that predictions= can hold, as [kidney_and_mass]; default: all."""
    missing: Literal["error", "zero"] = "error"
    """A true case without a prediction: refuse, or 0 in every mean."""
    poster: bool = False
    """Also print the poster's measure, a mean over 2D slices, and what predicting nothing scores by it. Always printed
    for runs with log.poster, as those of configs/poster_*.yaml."""
    panel: int = 6
    """Number of test cases drawn with contours."""
    batch_size: int = 16
    """Slices at once."""
    workers: int = 0
    """Processes that score, each holding one case in memory; 0 takes one per core where it pays off."""

    def __post_init__(self) -> None:
        if sum(map(bool, (self.run, self.predictions, self.compare, self.raters))) != 1:
            raise InputError("name one of run=, predictions=, compare= and raters=. All keys: help")
        if self.predictions and not (self.truth and self.output):
            raise InputError("predictions=DIR also needs truth=DIR and output=DIR.")
        if self.raters and not self.output:
            raise InputError("raters=DIR also needs output=DIR.")
        if self.poster and (self.compare or self.raters):
            raise InputError(
                "poster=true prints with run= and predictions=; compare= shows the measure of both systems."
            )
        if self.reference != "file" and not self.truth:
            raise InputError(f"reference={self.reference} is made of truth=DIR/CASE/segmentations/. Name truth=DIR")
        if self.store and self.split != "test" and not self.run:
            raise InputError(f"split={self.split}: which cases it holds depends on a run's fold. Leave store= out.")
        if not set(self.regions) <= set(REGIONS):
            raise InputError(f"regions={list(self.regions)}: choose from {list(REGIONS)}.")
        if self.workers < 0:
            raise InputError(f"workers={self.workers} must be 0 (one per core) or more.")


def main(args: Args) -> None:
    """Run the mode that the arguments name."""
    truth = Truth(Path(args.truth or args.raters), args.reference, args.store, args.regions, args.missing, args.poster)
    with ranks.joined() as group:
        if args.run:
            _score_run(args, group)
        elif args.predictions:
            score_folder(Path(args.predictions), truth, Path(args.output), group, args.workers)
        elif args.raters:
            score_raters(truth, Path(args.output), group, args.workers)
        else:
            against = truth if args.truth else None
            compare_systems(args.compare, args.split, args.output, against, group, args.workers)


def _score_run(args: Args, group: ranks.Ranks) -> None:
    run_folders(args.run)

    from kits_dist.inference.predictor import Predictor  # torch takes seconds to import; processes that score need none

    group.take_device()
    networks = {"precision": args.precision, "compiled": args.compile}
    predictor = Predictor(args.run, args.batch_size, args.tta, args.fusion, annotated=True, **networks)
    cases = run_cases(predictor, args.split, args.store, args.truth, args.reference)
    asked = args.poster or any(member.config.log.poster for member in predictor.members)
    cases = cases._replace(with_poster=asked)
    runs = [member.run for member in predictor.members]
    rules, message = load_rules(runs, predictor.step, args.postprocess, args.rules)
    if group.rank == 0:
        print(message)
        for line in format_findings(cases.warnings):
            print(line)
    score_run(predictor, cases, rules, args.output, args.panel, group, args.workers)


if __name__ == "__main__":
    cli.run(main, Args)
