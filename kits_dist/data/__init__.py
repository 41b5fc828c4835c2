"""From the slice store to a batch: store -> samples -> dataset -> backend -> Batch. See README.md.

`build_train_loader` and `build_val_loader` are imported on first use, so that reading a store does not import torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kits_dist.data.loaders import build_train_loader, build_val_loader

__all__ = ["build_train_loader", "build_val_loader"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from kits_dist.data import loaders

    return getattr(loaders, name)
