"""CT -> label map on the same grid: `python -m kits_dist.predict run=RUN_DIR input=FILE_OR_DIR output=DIR`.

input is a NIfTI file, a folder of them, a KiTS case or a folder of cases, nnU-Net's imagesTs, or a folder of DICOM
series. For each scan OUTPUT/NAME.nii.gz (uint8: 0 background, 1 kidney, 2 tumor, 3 cyst) and NAME.json (volumes and
sizes) are written; files of these names are replaced, each in one step. Under `accelerate launch` or torchrun the scans
are spread over the processes. Research use only, not a medical device.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kits_dist import cli
from kits_dist.cli import MISSING
from kits_dist.config import PrecisionName, Tta
from kits_dist.distributed.ranks import joined
from kits_dist.imaging.scans import find_scans
from kits_dist.inference.folder import Outcome, check_output, make_output, predict_scans
from kits_dist.inference.postprocessing import load_rules
from kits_dist.inference.run_folders import run_folders
from kits_dist.utils.errors import JobFailed

if TYPE_CHECKING:
    from kits_dist.inference.predictor import Predictor


@dataclass(frozen=True)
class Args:
    """Arguments of `kits_dist.predict`."""

    run: str = MISSING
    """Folder of a trained run; several as [A,B] are averaged; a cascade as [PHASE1,PHASE2]."""
    input: str = MISSING
    """One CT, a folder of CTs, a case, a folder of cases, or a folder of DICOM series."""
    output: str = MISSING
    """Folder for the label maps."""
    tta: Tta = "none"
    """flip: the mean with the prediction of the flipped slice; takes twice as long."""
    precision: PrecisionName = "auto"
    """Of the networks; on a GPU auto is bf16 or fp16 where the run was trained in it, else tf32."""
    compile: bool = False
    """Use torch.compile: a minute once, worth it for many scans on a GPU."""
    fusion: str = ""
    """Weights of several runs or planes, written by kits_dist.fuse; empty: the mean."""
    probabilities: bool = False
    """Also write NAME_REGION.nii.gz, probabilities in steps of 1/255."""
    postprocess: bool = True
    """Apply the rules that kits_dist.postprocess chose for this run."""
    rules: str = ""
    """For several runs: the postprocess.json that was chosen for exactly these."""
    batch_size: int = 16
    """Slices at once; with tta=flip half of them, together with their flips."""


def main(args: Args) -> None:
    """Predict the scans of `input`, spread over the processes of the launch."""
    output = Path(args.output)
    with joined() as group:
        scans, notes = find_scans(Path(args.input), output)
        check_output(Path(args.input), output, scans, args.probabilities)
        run_folders(args.run)

        from kits_dist.inference.predictor import Predictor  # torch takes seconds: wrong arguments are answered first

        group.take_device()
        predictor = Predictor(
            args.run, args.batch_size, args.tta, args.fusion, precision=args.precision, compiled=args.compile
        )
        runs = [member.run for member in predictor.members]
        rules, rules_note = load_rules(runs, predictor.step, args.postprocess, args.rules)
        if group.rank == 0:
            model = f"model of {args.run} (trained on {predictor.data}; {', '.join(predictor.regions)})"
            print(f"{len(scans)} scans; {model}; research use only")
            for precision in dict.fromkeys(member.precision for member in predictor.members):
                print(f"precision {precision.mode}: {precision.reason}")
            for note in (*notes, *_tta_notes(predictor), rules_note):
                print(f"note     {note}")

        make_output(output, scans, args.probabilities)
        # of several scans an unreadable one is reported at the end, so that the others are predicted
        skip_unreadable = len(scans) > 1
        outcome = predict_scans(
            group.share(scans), predictor, rules, output, args.probabilities, skip_unreadable=skip_unreadable
        )
        outcomes = group.gather([outcome])
    if outcomes is not None:
        _conclude(output, len(scans), outcomes)


def _tta_notes(predictor: "Predictor") -> list[str]:
    if predictor.tta != "flip":
        return []
    notes = [
        f"tta=flip, but {member.run} was trained with augment.flip=0, so without flipped slices"
        for member in predictor.members
        if not member.config.augment.flip
    ]
    if any("sagittal" in member.config.data.planes for member in predictor.members):
        notes.append("tta=flip: sagittal slices are not flipped, that would turn front to back")
    return notes


def _conclude(output: Path, count: int, outcomes: list[Outcome]) -> None:
    """Print the totals of all processes. Raises JobFailed where a scan could not be read."""
    failed = sorted(name for outcome in outcomes for name in outcome.failed)
    slices = sum(outcome.slices for outcome in outcomes)
    slowest_s = max(outcome.total_s for outcome in outcomes)
    shares = ", ".join(f"{outcome.network_s / max(outcome.total_s, 1e-9):.0%}" for outcome in outcomes)
    processes = f" ({len(outcomes)} processes)" if len(outcomes) > 1 else ""
    print(
        f"{count - len(failed)} label maps in {output}; {slices} slices in {slowest_s:.1f} s; time in the network: "
        f"{shares}{processes}"
    )
    if failed:
        raise JobFailed(f"{len(failed)} of {count} scans could not be read: {', '.join(failed)}.")


if __name__ == "__main__":
    cli.run(main, Args)
