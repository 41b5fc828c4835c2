"""CT -> label map on the same grid: `python -m kits_dist.predict run=RUN_DIR input=FILE_OR_DIR output=DIR`.

input is a NIfTI file, a folder of them, a KiTS case or a folder of cases, nnU-Net's imagesTs, or a folder of DICOM
series. For each scan OUTPUT/NAME.nii.gz (uint8: 0 background, 1 kidney, 2 tumor, 3 cyst) and NAME.json (volumes and
sizes) are written; files of these names are replaced, each in one step. Under `accelerate launch` or torchrun the scans
are spread over the processes. Research use only, not a medical device.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kits_dist import cli
from kits_dist.cli import MISSING
from kits_dist.data.store import Case
from kits_dist.distributed.ranks import Ranks, joined
from kits_dist.imaging.nifti import write_nifti
from kits_dist.imaging.scans import Scan, find_scans
from kits_dist.inference.measurements import NOTE, measure_label_map
from kits_dist.inference.postprocessing import Rules, clean, load_rules
from kits_dist.inference.predictor import Predictor
from kits_dist.inference.region_models import PrecisionName, Tta
from kits_dist.labels import REGIONS
from kits_dist.utils import files
from kits_dist.utils.errors import InputError, JobFailed
from kits_dist.utils.parallel import progress_bar
from kits_dist.utils.pipeline import run_pipeline


@dataclass(frozen=True)
class Args:
    run: str = MISSING
    """Folder of a trained run; several as [A,B] are averaged; a cascade as [PHASE1,PHASE2]."""
    input: str = MISSING
    """One CT, a folder of CTs, a case, a folder of cases, or a folder of DICOM series."""
    output: str = MISSING
    """Folder for the label maps."""
    tta: Tta = "none"
    """flip: the mean with the mirrored slice's prediction; takes twice as long."""
    precision: PrecisionName = "auto"
    """Of the networks; on a GPU auto is bf16 or fp16 where the run trained so, else tf32."""
    compile: bool = False
    """Torch.compile the networks: a minute once, worth it for many scans on a GPU."""
    fusion: str = ""
    """Weights of several runs or planes, written by kits_dist.fuse; empty: the mean."""
    probabilities: bool = False
    """Also write NAME_REGION.nii.gz, probabilities in steps of 1/255."""
    postprocess: bool = True
    """Apply the rules that kits_dist.postprocess chose for this run."""
    rules: str = ""
    """Of several runs: the postprocess.json that was chosen for exactly these."""
    batch_size: int = 16
    """Slices at once; with tta=flip half of them, beside their mirror images."""


class Loaded(NamedTuple):
    scan: Scan
    levels: np.ndarray  # (D, H, W) uint8
    case: Case


class Predicted(NamedTuple):
    scan: Scan
    labels: np.ndarray  # (D, H, W) uint8
    uint8_probabilities: np.ndarray | None  # (R, D, H, W) uint8 probabilities
    case: Case


class Summary(NamedTuple):
    """What one process has done."""

    slices: int
    failed: list[str]
    network_s: float
    total_s: float


def main(args: Args) -> None:
    with joined() as group:
        scans, notes = find_scans(Path(args.input))
        _refuse_overwriting(args, scans)
        group.take_device()
        how = {"precision": args.precision, "compiled": args.compile}
        predictor = Predictor(args.run, args.batch_size, args.tta, args.fusion, **how)
        runs = [member.run for member in predictor.members]
        rules, said = load_rules(runs, predictor.step, args.postprocess, args.rules)
        if group.rank == 0:
            about = f"model of {args.run} (trained on {predictor.data}; {', '.join(predictor.regions)})"
            print(f"{len(scans)} scans; {about}; research use only")
            for precision in dict.fromkeys(member.precision for member in predictor.members):
                print(f"precision {precision.mode}: {precision.reason}")
            for note in (*notes, *_tta_notes(predictor), said):
                print(f"note     {note}")
        files.make_folder(Path(args.output), "output")
        everyone = group.gather([_predict(args, predictor, rules, scans, group)])
    if everyone is not None:
        _conclude(args, scans, everyone)


def _predict(args: Args, predictor: Predictor, rules: Rules, scans: list[Scan], group: Ranks) -> Summary:
    """This process's scans: one thread reads ahead, one writes behind, the network works between them."""
    output, mine = Path(args.output), group.share(scans)

    def read(scan: Scan) -> Loaded | InputError:
        try:
            image = scan.read()
        except InputError as error:
            return error
        levels = predictor.levels_of(image)
        return Loaded(scan, levels, predictor.case_of(levels, image))

    def work(loaded: Loaded | InputError) -> Predicted | InputError:
        if isinstance(loaded, InputError):
            return loaded
        scan, levels, case = loaded
        uint8_probabilities = (
            np.empty((len(predictor.regions), *levels.shape), np.uint8) if args.probabilities else None
        )
        return Predicted(scan, predictor.predict_levels(levels, case, uint8_probabilities), uint8_probabilities, case)

    def write(predicted: Predicted | InputError) -> int | InputError:
        return predicted if isinstance(predicted, InputError) else _write(output, predicted, predictor, rules)

    began, slices, failed = time.perf_counter(), 0, []
    with progress_bar("predict", "scan", total=len(mine), disable=group.rank > 0) as bar:
        for scan, result in run_pipeline(mine, read, work, write):
            if isinstance(result, InputError):
                if len(scans) == 1:
                    raise result
                bar.write(f"error    {result}")
                failed.append(scan.name)
            else:
                slices += result
            bar.update()
    return Summary(slices, failed, predictor.network_s, time.perf_counter() - began)


def _write(output: Path, predicted: Predicted, predictor: Predictor, rules: Rules) -> int:
    """The files of one scan, the JSON last. Returns the number of slices."""
    scan, labels, uint8_probabilities, case = predicted
    labels = clean(labels, case.spacing_mm, rules)
    write_nifti(output / f"{scan.name}.nii.gz", labels, case.geometry)
    if uint8_probabilities is not None:
        for region, array in zip(predictor.regions, uint8_probabilities, strict=True):
            write_nifti(output / f"{scan.name}_{region}.nii.gz", array, case.geometry, slope=1 / 255)
    midline = case.body["axial"].center[1]
    about = {
        "note": NOTE,
        "labels": f"{scan.name}.nii.gz",
        "findings": measure_label_map(labels, case.spacing_mm, predictor.regions, midline),
        "spacing_mm": [round(mm, 5) for mm in case.spacing_mm],
        "regions": list(predictor.regions),
        "runs": [member.run.resolve().name for member in predictor.members],
        "step": predictor.step,
        "trained_on": predictor.data,
        "tta": predictor.tta,
        "precision": predictor.precision,
        "fusion": predictor.fusion,
        "postprocess": rules.active,
    }
    files.write_json(output / f"{scan.name}.json", about)
    return len(labels)


def _tta_notes(predictor: Predictor) -> list[str]:
    never = [member for member in predictor.members if not member.config.augment.flip]
    sagittal = any("sagittal" in member.config.data.planes for member in predictor.members)
    notes = [f"tta=flip, but {m.run} was trained with augment.flip=0, so without mirrored slices" for m in never]
    notes += ["tta=flip: sagittal slices are not mirrored, that would turn front to back"] if sagittal else []
    return notes if predictor.tta == "flip" else []


def _refuse_overwriting(args: Args, scans: list[Scan]) -> None:
    """Before anything is predicted: a CT that an output would replace, outputs that would replace one another, and an
    output folder whose label maps the same command would next time take for CTs."""
    output = Path(args.output)
    if output.exists() and not output.is_dir():
        raise InputError(f"output={output} is a file. Name a folder.")
    endings = ["", *(f"_{region}" for region in REGIONS)] if args.probabilities else [""]
    targets = [output / f"{scan.name}{ending}.nii.gz" for scan in scans for ending in endings]
    inputs = {scan.source.resolve() for scan in scans if isinstance(scan.source, Path)}
    if over := [path for path in targets if path.resolve() in inputs]:
        raise InputError(f"output={output} would overwrite the CT {over[0]}. Name another folder.")
    if Path(args.input).is_dir() and output.resolve() in {scan.root.resolve() for scan in scans}:
        raise InputError(f"output={output} is the input folder; next time labels would pass for CTs. Name another.")
    if len(set(targets)) < len(targets):
        twice = next(path for k, path in enumerate(targets) if path in targets[:k])
        raise InputError(f"two files would be called {twice.name}. Rename a scan, or leave out probabilities=true.")


def _conclude(args: Args, scans: list[Scan], everyone: list[Summary]) -> None:
    failed = [name for done in everyone for name in done.failed]
    slices, slowest_s = sum(done.slices for done in everyone), max(done.total_s for done in everyone)
    shares = ", ".join(f"{done.network_s / max(done.total_s, 1e-9):.0%}" for done in everyone)
    print(
        f"{len(scans) - len(failed)} label maps in {args.output}; {slices} slices in {slowest_s:.1f} s; time in the "
        f"network: {shares}" + (f" ({len(everyone)} processes)" if len(everyone) > 1 else "")
    )
    if failed:
        raise JobFailed(f"{len(failed)} of {len(scans)} scans could not be read: {', '.join(sorted(failed))}.")


if __name__ == "__main__":
    cli.run(main, Args)
