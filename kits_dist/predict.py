"""CT NIfTI -> label NIfTI on the same grid: `python -m kits_dist.predict run=RUN_DIR input=FILE_OR_DIR output=DIR`.

Research use only, not a medical device.
"""

from dataclasses import dataclass
from pathlib import Path

from kits_dist import cli
from kits_dist.cli import MISSING
from kits_dist.data.sources import find_cases, image_of, stem
from kits_dist.data.volume import read_image, write_nifti
from kits_dist.errors import InputError, JobFailed, MissingInput
from kits_dist.inference import Predictor
from kits_dist.parallel import progress_bar


@dataclass(frozen=True)
class Args:
    run: str = MISSING  # folder of a trained run
    input: str = MISSING  # one CT (.nii, .nii.gz), one case, a folder of CTs, or a folder of cases
    output: str = MISSING  # folder for the label maps
    batch_size: int = 16  # slices at once


def main(args: Args) -> None:
    scans = _scans(Path(args.input))
    targets = {name: Path(args.output) / f"{name}.nii.gz" for name in scans}
    inputs = {path.resolve() for path in scans.values() if path}
    if over := [str(path) for path in targets.values() if path.resolve() in inputs]:
        raise InputError(f"output={args.output} would overwrite the CT {over[0]}. Name another folder.")
    predictor = Predictor(args.run, args.batch_size)
    print(
        f"{len(scans)} scans; model of {args.run} (trained on {predictor.data}; {', '.join(predictor.regions)}); "
        f"research use only"
    )
    failed = []
    for name, path in progress_bar("predict", "scan", items=list(scans.items())):
        try:
            if path is None:
                raise MissingInput(f"{name}: no CT file in {args.input}.")
            image = read_image(path)
        except InputError as error:
            if len(scans) == 1:
                raise
            print(f"error    {error}")
            failed.append(name)
            continue
        write_nifti(targets[name], predictor.predict(image), image.geometry)
    print(f"{len(scans) - len(failed)} label maps in {args.output}")
    if failed:
        raise JobFailed(f"{len(failed)} of {len(scans)} scans could not be read: {', '.join(failed)}.")


def _scans(source: Path) -> dict[str, Path | None]:
    """{name of the output: CT file, or None where a case has none}."""
    if source.is_file():
        return {stem(source): source}
    if not source.is_dir():
        raise MissingInput(f"input={source}: no such file or folder.")
    if (image := image_of(source)) is not None:
        return {source.name: image}
    loose = sorted(p for p in source.iterdir() if p.name.endswith((".nii", ".nii.gz")) and not p.name.startswith("."))
    if loose:
        named = {stem(path): path for path in loose}
        if len(named) < len(loose):
            raise InputError(f"input={source} holds files that differ only in .nii and .nii.gz. Keep one of each.")
        return named
    return {case.case_id: case.image for case in find_cases(source).cases}


if __name__ == "__main__":
    cli.run(main, Args)
