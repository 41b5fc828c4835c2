"""Other libraries on the same slices: the work of our default augmentation, each with its fastest options we found.

One file for each library; its first lines and ../NOTES.md say which options were chosen, and which were slower.
"""

import contextlib
import importlib
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version

from benchmarks.lib.training import Setup, Training
from benchmarks.peers import (
    albumentations_loader,
    batchgenerators_loader,
    monai_loader,
    monai_training,
    plain_training,
    poster_loader,
)
from benchmarks.peers.slices import Peer, Slices, stream
from kits_dist.config import AugmentConfig
from kits_dist.data.dataset import SliceDataset
from kits_dist.utils.errors import InputError, MissingPackage
from kits_dist.utils.packages import optional_package

PEERS: dict[str, type[Peer]] = {
    "albumentations": albumentations_loader.Albumentations,
    "monai": monai_loader.Monai,
    "batchgenerators": batchgenerators_loader.BatchGenerators,
    "albumentationsx": albumentations_loader.AlbumentationsX,
    "poster": poster_loader.PosterLoader,
}
# a peer that draws other changes than ours by default: ours then draws the same
CHANGES: dict[str, AugmentConfig] = {"poster": poster_loader.AS_THE_POSTER}

# whole trainings: (their options, the peer whose package they need, what builds them)
TRAININGS = {
    "plain_pytorch": (plain_training.CHOICES, "albumentations", plain_training.build),
    "monai": (monai_training.CHOICES, "monai", monai_training.build),
}

__all__ = [
    "CHANGES",
    "PEERS",
    "TRAININGS",
    "Peer",
    "Slices",
    "build",
    "build_training",
    "chosen",
    "stream",
    "usable",
    "version_of",
]


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
    package, extra = PEERS[name].package, PEERS[name].extra
    try:
        return version(package)
    except PackageNotFoundError as error:
        raise MissingPackage(f"{package} is not installed: pip install kits-dist[{extra}]") from error


def build(name: str, dataset: SliceDataset, changes: AugmentConfig) -> Peer:
    """Return the peer with the changes it shall draw. Raises MissingPackage."""
    with usable(name):
        return PEERS[name](dataset, changes)


def build_training(name: str, setup: Setup, dataset: SliceDataset) -> Training:
    """Return one of TRAININGS on the training slices of `dataset`. Raises MissingPackage."""
    _, peer, make = TRAININGS[name]
    with usable(peer):
        return make(setup, dataset)


@contextlib.contextmanager
def usable(name: str) -> Iterator[None]:
    """Turn an import that fails in the block into MissingPackage: a peer that is missing never ends a benchmark.

    What a constructor or the first batch raises otherwise is a fault of ours. Raises MissingPackage at once where the
    package is not installed, or cannot be imported.
    """
    found, peer = version_of(name), PEERS[name]
    package = peer.package
    need = f"peers={name} needs {package}"
    advice = f"Found {found}; reinstall it: pip install --force-reinstall kits-dist[{peer.extra}]"
    with optional_package(package, need, advice):
        importlib.import_module(peer.module or package)
    with optional_package(package, need, advice, raised=(ImportError, OSError)):
        yield
