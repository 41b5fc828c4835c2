"""Score a run on held-out cases, or any folder of label maps against the truth.

python -m kits_dist.evaluate run=RUN_DIR split=test
python -m kits_dist.evaluate predictions=DIR truth=DIR output=DIR
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from kits_dist import cli
from kits_dist.cleaning import clean, load_rules
from kits_dist.data.sources import MARKER, data_kind, find_cases, some, stem
from kits_dist.data.volume import Volume, read_labels, same_grid, write_nifti
from kits_dist.drawing import Tile, panel, save_png
from kits_dist.errors import InputError, JobFailed, MissingInput
from kits_dist.evaluation import CaseScore, as_text, score_case, summarize, write_tables
from kits_dist.figures import draw_cases
from kits_dist.files import write_bytes
from kits_dist.findings import as_csv, findings
from kits_dist.held_out import held_out
from kits_dist.inference import Predictor, Tta
from kits_dist.labels import PLAIN, REGIONS, TUMOR, scored_regions
from kits_dist.parallel import progress_bar


@dataclass(frozen=True)
class Args:
    run: str = ""  # folder of a trained run: predict a split in native geometry and score it; several as [A,B]
    split: Literal["test", "val"] = "test"  # which cases; val chose the checkpoint, so report test
    store: str = ""  # the run's store, where it has moved
    predictions: str = ""  # folder of label maps to score (CASE.nii.gz), any system's
    truth: str = ""  # folder of cases, or of CASE.nii.gz files
    output: str = ""  # where the tables of predictions=, or of several runs, go
    tta: Tta = "none"  # flip: the mean with the mirrored slice's prediction; takes twice as long
    postprocess: bool = True  # apply the rules that kits_dist.postprocess chose for this run
    regions: tuple[str, ...] = ()  # what predictions= can hold, as [kidney_and_mass]; default: everything
    missing: Literal["error", "zero"] = "error"  # a true case without prediction: refuse, or count as all background
    panel: int = 6  # test slices drawn with contours
    batch_size: int = 16  # slices at once

    def __post_init__(self) -> None:
        if bool(self.run) == bool(self.predictions):
            raise InputError("name either run=RUN_DIR, or predictions=DIR truth=DIR output=DIR. All keys: help")
        if self.predictions and not (self.truth and self.output):
            raise InputError("predictions=DIR also needs truth=DIR and output=DIR.")
        if unknown := set(self.regions) - set(REGIONS):
            raise InputError(f"regions={sorted(unknown)}: choose from {list(REGIONS)}.")


def main(args: Args) -> None:
    if args.run:
        _evaluate_run(args)
    else:
        _evaluate_folder(args)


def _evaluate_run(args: Args) -> None:
    predictor = Predictor(args.run, args.batch_size, args.tta)
    store, case_ids = held_out(predictor, args.split, args.store)
    runs = [member.run for member in predictor.members]
    rules, said = load_rules(runs, predictor.step, args.postprocess)
    print(said)
    output = _output_of_runs(args, runs)
    (output / "summary.json").unlink(missing_ok=True)  # written last: without it the folder is unfinished
    regions = scored_regions(predictor.regions)
    scores, tiles, found = [], [], {}
    for case_id in progress_bar(f"evaluate {args.split}", "case", items=case_ids):
        row = store.row[case_id]
        case = store.cases[row]
        predicted = clean(predictor.predict_levels(store.image(row), case), case.spacing_mm, rules)
        found[case_id] = findings(predicted, case.spacing_mm, predictor.regions, case.body["axial"].center[1])
        truth = np.asarray(store.label(row))
        write_nifti(output / "predictions" / f"{case_id}.nii.gz", predicted, case.geometry)
        scores.append(score_case(case_id, predicted, truth, case.spacing_mm, regions))
        tiles.append(_largest_slice(np.asarray(store.image(row)), truth, predicted, case_id, store.window.levels))
    summary = summarize(scores, store.meta["data"], args.split)
    summary |= {"step": predictor.step, "store_sha256": store.fingerprint()}
    summary |= {"tta": args.tta, "postprocess": rules.active}
    write_bytes(output / "findings.csv", as_csv(found).encode())
    write_tables(output, scores, summary)
    draw_cases(output, store, predictor.regions)
    save_png(output / "panel.png", panel(tiles[: args.panel], f"data: {summary['data']}   split: {args.split}"))
    _print(summary, output)


def _output_of_runs(args: Args, runs: list[Path]) -> Path:
    if len(runs) > 1 and not args.output:
        raise InputError(f"run={args.run} names several runs: say with output=DIR where their common scores go.")
    return Path(args.output) if args.output else runs[0] / "evaluation" / args.split


def _largest_slice(image: np.ndarray, truth: np.ndarray, predicted: np.ndarray, case_id: str, levels: int) -> Tile:
    """The slice with the most true tumor, or else the most true foreground: chosen by the truth, never by the score."""
    area = (truth == TUMOR).sum(axis=(1, 2)) * 1000 + (truth > 0).sum(axis=(1, 2))
    index = int(area.argmax())
    grey = np.clip(image[index].astype(np.float32) * 255 / levels, 0, 255).astype(np.uint8)
    return Tile(grey, truth[index], predicted[index], f"{case_id} slice {index}")


def _evaluate_folder(args: Args) -> None:
    predictions, truths = _label_files(Path(args.predictions), "predictions"), _label_files(Path(args.truth), "truth")
    extra = sorted(set(predictions) - set(truths))
    missing = sorted(set(truths) - set(predictions))
    if extra:
        raise InputError(
            f"predictions={args.predictions}: no truth for {some(extra)}. Add the truth or remove the files."
        )
    if missing and args.missing == "error":
        raise InputError(
            f"predictions={args.predictions}: nothing for {some(missing)}. Predict them, or pass missing=zero."
        )
    regions = scored_regions(args.regions) if args.regions else REGIONS | PLAIN
    scores: list[CaseScore] = []
    bad: list[str] = []
    for case_id, path in progress_bar("evaluate", "case", items=sorted(truths.items())):
        try:
            truth = read_labels(path)
            if case_id in missing:
                predicted = np.zeros_like(truth.array)
            else:
                predicted = _on_grid(read_labels(predictions[case_id]), truth, predictions[case_id], path)
        except InputError as error:
            bad.append(str(error))
            continue
        scores.append(score_case(case_id, predicted, truth.array, truth.spacing_mm, regions))
    if bad:
        raise JobFailed(f"no mean over fewer cases: {len(bad)} of {len(truths)} could not be scored: {'; '.join(bad)}")
    data = data_kind(Path(args.truth)) if (Path(args.truth) / MARKER).is_file() else "unknown"
    summary = summarize(scores, data, "folder") | {"missing": args.missing, "missing_cases": missing}
    write_tables(Path(args.output), scores, summary)
    _print(summary, Path(args.output))


def _on_grid(predicted: Volume, truth: Volume, predicted_path: Path, truth_path: Path) -> np.ndarray:
    """Both are read into one orientation, so the same grid stored in another axis order compares voxel by voxel."""
    a, b = predicted.canonical_geometry(), truth.canonical_geometry()
    if not same_grid(a, b):
        raise InputError(
            f"{predicted_path} is not on the grid of {truth_path}: shape {a.shape} and {b.shape} (D, H, W), spacing "
            f"{np.round(predicted.spacing_mm, 4).tolist()} and {np.round(truth.spacing_mm, 4).tolist()} mm, first "
            f"voxel at "
            f"{np.round(a.affine[:3, 3], 2).tolist()} and {np.round(b.affine[:3, 3], 2).tolist()} mm. Resample the "
            f"prediction."
        )
    return predicted.array


def _label_files(folder: Path, key: str) -> dict[str, Path]:
    if not folder.is_dir():
        raise MissingInput(f"{key}={folder}: no such folder.")
    found = [p for p in sorted(folder.iterdir()) if p.name.endswith((".nii", ".nii.gz")) and not p.name.startswith(".")]
    loose = {stem(p): p for p in found}
    if len(loose) < len(found):
        raise InputError(f"{key}={folder} holds files that differ only in .nii and .nii.gz. Keep one of each.")
    if loose:
        return loose
    found = {case.case_id: case.label for case in find_cases(folder).cases if case.label}
    if not found:
        raise InputError(f"{key}={folder}: no label maps. Expected CASE.nii.gz files or folders of cases.")
    return found


def _print(summary: dict, output: Path) -> None:
    print(as_text(summary))
    print(f"tables and pictures: {output}")


if __name__ == "__main__":
    cli.run(main, Args)
