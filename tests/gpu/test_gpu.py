"""DALI on a GPU: its kernels agree with the NumPy reference, and its buffers hold under load.

That a training step never waits for the GPU is tested in tests/unit/training/test_precision.py.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from kits_dist import phantom, prepare
from kits_dist.config import DataConfig
from kits_dist.data.loaders import build_train_loader
from kits_dist.data.store import Store
from kits_dist.distributed.ranks import Ranks
from tests.helpers import pixels

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory) -> Store:
    root = tmp_path_factory.mktemp("phantoms")
    phantom.main(phantom.Args(output=str(root / "raw"), cases=6, size=(16, 128, 128), workers=1))
    prepare.main(prepare.Args(source=str(root / "raw"), store=str(root / "store"), workers=1))
    return Store(root / "store")


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda", 0)


def _data(store: Store, batch_size: int = 16, size_px: tuple[int, int] = (128, 128)) -> DataConfig:
    return DataConfig(store=str(store.path), batch_size=batch_size, size_px=size_px)


@pytest.mark.parametrize("size_px", [(128, 128), (96, 64), (160, 160)])
def test_dali_on_the_gpu_agrees_with_the_numpy_reference(phantoms, device, size_px):
    on_gpu = pixels.Backend("dali", device)
    backends = {"dali_cpu": pixels.Backend("dali"), "dali_gpu": on_gpu}
    found = pixels.compare(phantoms, _data(phantoms, size_px=size_px), backends, batches=4)
    for pair in ("dali_gpu against numpy", "dali_gpu against dali_cpu"):
        hu = np.concatenate([difference.hu.ravel() for difference in found[pair]])
        # float32 coordinates near 200 are known to 1e-5 px, neighbors differ by 200 HU at most: far below 0.1 HU
        # (measured on the CPU: 0.01); 2 HU is what a kernel that interpolates with 8-bit weights may still do
        assert np.percentile(hu, 99.9) < 0.5, pair
        assert hu.max() < 2, pair
        # labels differ only where the source point lies within float32 of the border between two pixels
        assert np.mean([difference.label_share for difference in found[pair]]) < 1e-3, pair


@pytest.mark.parametrize("context", [0, 1])
def test_slices_in_gpu_memory_give_the_same_batches_as_mapped_files(phantoms, device, context):
    mapped, held = (replace(_data(phantoms), residency=where, context=context) for where in ("mmap", "gpu"))
    a, b = (build_train_loader(phantoms, data, pixels.DRAWN, 0, Ranks(), device=device)[0] for data in (mapped, held))
    for _, one, other in zip(range(20), a, b, strict=False):
        assert all(torch.equal(x, y) for x, y in zip(one, other, strict=True))


def test_half_precision_images_are_rounded_float32_images(phantoms, device):
    data = _data(phantoms)
    full, _ = build_train_loader(phantoms, data, pixels.DRAWN, 0, Ranks(), device=device)
    half, _ = build_train_loader(phantoms, data, pixels.DRAWN, 0, Ranks(), device=device, dtype=torch.float16)
    a, b = next(iter(full)), next(iter(half))
    assert b.image.dtype == torch.float16 and b.image.device == device
    torch.testing.assert_close(b.image.float(), a.image, rtol=2**-10, atol=2**-14)  # fp16 keeps 11 bits
    assert torch.equal(a.label, b.label)


@pytest.mark.parametrize("residency", ["mmap", "gpu"])
def test_batches_are_intact_when_the_gpu_is_busy_and_the_host_runs_ahead(phantoms, device, residency):
    backend = pixels.Backend("dali", device, torch.float16)
    data = replace(_data(phantoms), residency=residency)
    wrong = pixels.busy_differences(phantoms, data, backend, batches=100)
    assert wrong == [], f"batches that differ from an undisturbed pass: {wrong}"
