"""What a MONAI user runs instead of prepare: `python -m benchmarks.peers.monai_prepare source=DIR output=DIR`.

LoadImaged, Orientationd and ScaleIntensityRanged into a PersistentDataset, one DataLoader worker per core. Different
work: float32 (four bytes a voxel where ours has one), no check of the files, no statistics, no table of slices.
"""

from dataclasses import dataclass
from pathlib import Path

from kits_dist import cli
from kits_dist.cli import MISSING
from kits_dist.imaging.datasets import find_cases
from kits_dist.utils.parallel import available_cores

KEYS = ("image", "label")


@dataclass(frozen=True)
class Args:
    """Arguments of the program."""

    source: str = MISSING
    """Folder of cases."""
    output: str = MISSING
    """Folder of the cache."""


def main(args: Args) -> None:
    """Fill the cache."""
    import monai.transforms as M
    from monai.data import PersistentDataset
    from torch.utils.data import DataLoader

    files = [{"image": str(case.image), "label": str(case.label)} for case in find_cases(Path(args.source)).cases]
    steps = M.Compose(
        [
            M.LoadImaged(KEYS, ensure_channel_first=True),
            M.Orientationd(KEYS, axcodes="RAS", labels=None),
            M.ScaleIntensityRanged(["image"], 0, 200, 0, 1, clip=True),
        ]
    )
    dataset = PersistentDataset(files, steps, cache_dir=args.output)
    for _ in DataLoader(dataset, batch_size=None, num_workers=available_cores(), collate_fn=len):
        pass
    print(f"{len(files)} cases")


if __name__ == "__main__":
    cli.run(main, Args)
