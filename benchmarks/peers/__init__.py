"""Other libraries on the same slices: the work of the poster's augmentation, each with its fastest options we found.

One file for each library; its first lines and ../NOTES.md say which options were chosen, and which were slower.
"""

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

from benchmarks.peers import albumentations_loader, batchgenerators_loader, monai_loader, monai_training, plain_training
from benchmarks.peers.slices import Peer, Slices, stream
from kits_dist.config import AugmentConfig
from kits_dist.data.dataset import SliceDataset
from kits_dist.utils.errors import InputError, MissingPackage

PEERS: dict[str, type[Peer]] = {
    "albumentations": albumentations_loader.Albumentations,
    "monai": monai_loader.Monai,
    "batchgenerators": batchgenerators_loader.BatchGenerators,
}

# whole trainings: (their options, the peer whose package they need, what builds them)
TRAININGS = {
    "plain_pytorch": (plain_training.CHOICES, "albumentations", plain_training.build),
    "monai": (monai_training.CHOICES, "monai", monai_training.build),
}

__all__ = ["PEERS", "TRAININGS", "Peer", "Slices", "build", "chosen", "stream", "version_of"]


def chosen(words: tuple[str, ...], known: Iterable[str] = PEERS) -> list[str]:
    """Return the names that `peers=` asks for; `true` means all of them. Raises InputError."""
    words = tuple(word.lower() for word in words if word.lower() != "false")
    if words == ("true",):
        return list(known)
    wrong = [word for word in words if word not in known]
    if wrong:
        raise InputError(f"peers={wrong}: choose from {list(known)}, or true for all.")
    return list(words)


def version_of(name: str) -> str:
    """Return the version of a peer's package. Raises MissingPackage."""
    package = PEERS[name].package
    try:
        return version(package)
    except PackageNotFoundError as error:
        raise MissingPackage(f"{package} is not installed: pip install kits-dist[peers]") from error


def build(name: str, dataset: SliceDataset, changes: AugmentConfig) -> Peer:
    """Return the peer with the changes it shall draw. Raises MissingPackage."""
    version_of(name)
    return PEERS[name](dataset, changes)
