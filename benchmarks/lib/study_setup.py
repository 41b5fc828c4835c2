"""What the studies start from: phantoms to train on, and a recipe cut to what the machine can do in an hour."""

from pathlib import Path

from benchmarks.lib.harness import make_store
from benchmarks.lib.study_runs import ROOT

TINY = ("data.size_px=64x64", "model.width=4", "optim.epochs=1")


def phantoms(folder: Path, cases: int, size: tuple[int, int, int], planes: tuple[str, ...] = ("axial",)) -> str:
    """A store of phantoms below `folder`, made once."""
    where = folder / "data" / f"{cases}_{'x'.join(map(str, size))}"
    if not (where / "store" / "store.json").is_file():
        make_store(where, cases, size, planes)
    return str(where / "store")


def recipe(config: str, on_gpu: bool, quick: bool, epochs: int = 2) -> tuple[str, ...]:
    """The words that every training of a study begins with.

    config: a yaml file of the user; empty: configs/demo_gpu.yaml on a GPU, and without one configs/demo.yaml cut down,
    at 2 `epochs` to less than a minute of one core. quick: tiny.
    """
    if config or on_gpu and not quick:
        words = (f"config={Path(config or ROOT / 'configs' / 'demo_gpu.yaml')}",)
    else:
        small = ("data.size_px=64x96", "data.backend=opencv", f"optim.epochs={epochs}", "log.images=0")
        words = (f"config={ROOT / 'configs' / 'demo.yaml'}", *small)
    return words + TINY if quick else words
