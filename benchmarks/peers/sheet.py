"""One picture: the same slices from every loader, without augmentation and with it."""

import itertools
from dataclasses import replace

import numpy as np
from PIL import Image, ImageDraw

from benchmarks import peers
from benchmarks.lib.pixels import reference
from benchmarks.lib.stores import STILL, dataset_of
from kits_dist.config import AugmentConfig, DataConfig
from kits_dist.data.loaders import build_train_loader
from kits_dist.data.sampler import train_positions
from kits_dist.data.store import Store
from kits_dist.distributed.ranks import Ranks
from kits_dist.figures.contours import draw_contours, save_png
from kits_dist.utils.errors import MissingPackage

EVERYTHING = AugmentConfig(rotate_p=0.9, scale_p=0.6, noise_p=0.5)  # most samples draw something
NUM_STILL, NUM_DRAWN = 3, 5  # columns
TILE_PX, TEXT_PX = 200, 16

Pixels = tuple[np.ndarray, np.ndarray]  # (B, 1, h, w) float32 normalized, (B, h, w) labels


def draw_sheet(path: str, store: Store, data: DataConfig, names: list[str]) -> None:
    """Draw a row for each loader: the definition (augment.apply), our CPU backends, the peers in `names`.

    Columns: windows around the body without augmentation, with each row's greatest difference from the definition;
    then augmented ones, the same slices in each row.
    """
    rows: dict[str, tuple[Pixels, Pixels] | str] = {}
    sources = {"augment.apply": _definition, "opencv": _ours, "dali": _ours} | dict.fromkeys(names, _peer)
    for name, source in sources.items():
        try:
            rows[name] = tuple(source(name, store, data, changes) for changes in (STILL, EVERYTHING))
        except MissingPackage as error:
            rows[name] = str(error)
    norm = dataset_of(store, data, STILL).norm
    picture = Image.new("RGB", ((NUM_STILL + NUM_DRAWN) * (TILE_PX + 4) + 4, len(rows) * (TILE_PX + TEXT_PX + 4) + 4))
    pen = ImageDraw.Draw(picture)
    for number, (name, found) in enumerate(rows.items()):
        top = number * (TILE_PX + TEXT_PX + 4) + 4
        if isinstance(found, str):
            pen.text((4, top), f"{name}: {found}", fill="white")
            continue
        (still, still_label), (drawn, drawn_label) = found
        apart = np.abs(still - rows["augment.apply"][0][0]).max() * norm.sd * store.window.step_hu
        wrong = (still_label != rows["augment.apply"][0][1]).mean()
        pen.text((4, top), f"{name}: still, worst pixel {apart:.2g} HU, labels {wrong:.2g}; then drawn", fill="white")
        tiles = [*zip(still[:NUM_STILL], still_label, strict=False), *zip(drawn[:NUM_DRAWN], drawn_label, strict=False)]
        for column, (image, label) in enumerate(tiles):
            levels = (image[0] * norm.sd + norm.mean) * (255 / store.window.levels)
            tile = draw_contours(np.clip(np.rint(levels), 0, 255).astype(np.uint8), label, TILE_PX)
            picture.paste(Image.fromarray(tile), (column * (TILE_PX + 4) + 4, top + TEXT_PX))
    save_png(path, np.asarray(picture))


def _definition(name: str, store: Store, data: DataConfig, changes: AugmentConfig) -> Pixels:
    return reference(dataset_of(store, data, changes), train_positions(0, data.batch_size, 0, 1))


def _ours(name: str, store: Store, data: DataConfig, changes: AugmentConfig) -> Pixels:
    loader, _ = build_train_loader(store, replace(data, backend=name), changes, 0, Ranks())
    (batch,) = itertools.islice(loader, 1)
    return batch.image.numpy().copy(), batch.label.numpy().copy()


def _peer(name: str, store: Store, data: DataConfig, changes: AugmentConfig) -> Pixels:
    dataset = dataset_of(store, data, changes)
    image, label = next(peers.stream(peers.build(name, dataset, changes), dataset, changes, data.batch_size, workers=0))
    return image.numpy(), label.numpy()
