"""Which precision a process trains or predicts in, and why."""

import os
from typing import NamedTuple

import torch

from kits_dist.config import TrainConfig
from kits_dist.utils.errors import InputError


class Precision(NamedTuple):
    """A precision mode, and why it was chosen."""

    mode: str  # fp32, tf32, fp16 or bf16
    reason: str

    @property
    def autocast(self) -> str:
        """Accelerate's name of the mode: no, fp16 or bf16."""
        return self.mode if self.mode in ("fp16", "bf16") else "no"


def launched_precision(train: TrainConfig) -> Precision:
    """Return the precision that this process trains in. Raises InputError like `choose_precision`."""
    return choose_precision(train.precision, os.environ.get("ACCELERATE_MIXED_PRECISION", "no"))


def choose_precision(asked: str, launched: str) -> Precision:
    """Return the mode that follows from a key such as `train.precision` and the launcher's mixed_precision.

    asked      auto, fp32, tf32, fp16 or bf16; auto takes the launcher's, else the best that the GPU has
    launched   no, fp16 or bf16

    Raises InputError when they contradict each other, or ask a CPU for what only a GPU has.
    """
    if launched not in ("no", "fp16", "bf16"):
        raise InputError(f"the launcher's mixed_precision={launched} is not supported: use no, fp16 or bf16.")
    if asked != "auto" and launched not in ("no", asked):
        raise InputError(f"train.precision={asked} but the launcher's mixed_precision={launched}. Change one of them.")
    wished, by = (launched, "the launcher's mixed_precision") if asked == "auto" else (asked, "train.precision")
    if wished in ("fp16", "tf32") and not torch.cuda.is_available():  # accelerate would train in fp32, silently
        raise InputError(f"{by}={wished} needs an NVIDIA GPU. Without one, leave both of them out, which is fp32.")
    if wished != "no":
        return Precision(wished, by)
    if not torch.cuda.is_available():
        return Precision("fp32", "no GPU")
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return Precision("bf16", f"{torch.cuda.get_device_name()} has it")
    return Precision("fp16", f"{torch.cuda.get_device_name()} has no bf16")
