"""What a training run is: frozen dataclasses with the poster's method as defaults; yaml holds only differences.

Values that cannot work are refused here, before a GPU is touched. The docstring under a field is its help text.
"""

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from omegaconf import MISSING

from kits_dist.labels import REGIONS
from kits_dist.utils import files
from kits_dist.utils.errors import InputError


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise InputError(message)


_PLANES = {"axial", "coronal", "sagittal"}


@dataclass(frozen=True)
class DataConfig:
    store: str = MISSING
    """Folder written by kits_dist.prepare."""
    fold: int | str = 0
    """Validation fold 0..4; `all` trains and validates on every case outside the test set."""
    batch_size: int = 128
    """Slices per process and step; the global batch is this times the processes."""
    size_px: tuple[int, int] = (512, 512)
    """(height, width) the network sees, multiples of 32; also written 256x256."""
    pixel_mm: float | None = None
    """Resample every case to this pixel size; none keeps each case's own pixels."""
    slices: Literal["all", "kidney"] = "all"
    """Train on all slices, or on those within `margin` of a kidney."""
    margin: int = 10
    """Slices kept above and below the kidneys when slices=kidney."""
    planes: tuple[str, ...] = ("axial",)
    """Cut along these: axial, coronal, sagittal, as the store was prepared."""
    box: Literal["body", "kidney"] = "body"
    """kidney: a sample is one slice of one kidney's box (phase 2 of a cascade)."""
    box_margin_mm: float = 20.0
    """Kept around each kidney on all sides when box=kidney."""
    context: int = 0
    """Neighbouring slices on each side, as further input channels."""
    backend: Literal["dali", "opencv", "fixed"] = "dali"
    """opencv: CPU threads; fixed: one batch repeated, a ceiling."""
    residency: Literal["mmap", "gpu", "auto"] = "mmap"
    """gpu: training slices stay in GPU memory; auto: where they fit."""
    sampler: Literal["natural", "foreground", "tumor", "cyst", "case"] = "natural"
    """What each epoch is made of."""
    share: float = 0.33
    """Of the epoch for slices with any label, tumor or cyst (sampler=foreground, tumor, cyst)."""
    threads: int = 0
    """CPU threads of the backend per process; 0 divides the cores among this machine's processes."""
    prefetch: int = 2
    """Batches prepared ahead."""

    def __post_init__(self) -> None:
        _require(
            all(0 < n <= 8192 and n % 32 == 0 for n in self.size_px),
            f"data.size_px={self.size_px}: each must be a positive multiple of 32 (five levels), at most 8192. "
            "Example: data.size_px=352x448",
        )
        _require(self.batch_size > 0, f"data.batch_size={self.batch_size} must be at least 1.")
        _require(1 <= self.prefetch <= 64, f"data.prefetch={self.prefetch} batches: use 1..64.")
        _require(0 <= self.threads <= 1024, f"data.threads={self.threads}: use 0 (automatic) or up to 1024.")
        _require(0 < self.share < 1, f"data.share={self.share}: use a share between 0 and 1, both excluded.")
        _require(0 <= self.margin <= 10**6, f"data.margin={self.margin} slices: use 0..1000000.")
        _require(
            bool(self.planes) and set(self.planes) <= _PLANES and len(set(self.planes)) == len(self.planes),
            f"data.planes={list(self.planes)}: choose from {sorted(_PLANES)}, each once.",
        )
        _require(
            self.box == "body" or self.planes == ("axial",),
            f"data.box=kidney cuts axial slices only, not data.planes={list(self.planes)}.",
        )
        _require(
            self.box == "body" or self.slices == "all",
            "data.box=kidney takes the slices of each kidney's box: leave out data.slices, set data.box_margin_mm.",
        )
        _require(0 <= self.box_margin_mm <= 200, f"data.box_margin_mm={self.box_margin_mm} mm: use 0..200.")
        _require(0 <= self.context <= 8, f"data.context={self.context} must lie in 0..8 neighbours on each side.")
        _require(self.pixel_mm is None or 0.1 <= self.pixel_mm <= 20, f"data.pixel_mm={self.pixel_mm} mm: use 0.1..20.")
        _require(
            self.fold == "all" or isinstance(self.fold, int) and self.fold >= 0,
            f"data.fold={self.fold!r}: a fold number from 0, or all.",
        )


@dataclass(frozen=True)
class AugmentConfig:
    rotate_deg: float = 15.0
    """Rotation drawn from +- this, in degrees."""
    rotate_p: float = 0.5
    """Probability of a rotation."""
    flip: float = 0.5
    """Probability of a left-right flip."""
    scale: tuple[float, float] = (0.85, 1.15)
    """Magnification range."""
    scale_p: float = 0.3
    """Probability of a magnification."""
    crop: float = 1.0
    """Probability of a random window of size_px; otherwise it is centred on the body."""
    box_mm: float = 10.0
    """Each side of a kidney's box is moved by up to +- this, in mm (data.box=kidney)."""
    shift_mm: float = 10.0
    """The window is moved by up to this along each axis, in mm."""
    shift_p: float = 0.0
    """Probability of such a move."""
    blur_px: tuple[float, float] = (0.5, 1.5)
    """Sd of Gaussian blur, in pixels of the network."""
    blur_p: float = 0.0
    """Probability of blur."""
    brightness_hu: float = 20.0
    """HU added, drawn from +- this."""
    brightness_p: float = 0.0
    """Probability of a change of brightness."""
    contrast: tuple[float, float] = (0.75, 1.25)
    """Factor on the distance from the middle of the HU window."""
    contrast_p: float = 0.0
    """Probability of a change of contrast."""
    gamma: tuple[float, float] = (0.7, 1.5)
    """Exponent on the HU window scaled to 0..1."""
    gamma_p: float = 0.0
    """Probability of a gamma curve."""
    noise_hu: float = 15.0
    """Sd of Gaussian noise drawn from 0 to this, in HU."""
    noise_p: float = 0.15
    """Probability of noise."""

    def __post_init__(self) -> None:
        for name in ("flip", "crop", *(name for name in vars(self) if name.endswith("_p"))):
            p = getattr(self, name)
            _require(0 <= p <= 1, f"augment.{name}={p} is a probability: use 0..1.")
        _require(0 <= self.rotate_deg <= 180, f"augment.rotate_deg={self.rotate_deg} degrees: use 0..180.")
        for name, lowest, highest in (
            ("scale", 0.25, 4),
            ("blur_px", 0.1, 10),
            ("contrast", 0.1, 10),
            ("gamma", 0.1, 10),
        ):
            low, high = getattr(self, name)
            _require(
                lowest <= low <= high <= highest,
                f"augment.{name}={[low, high]}: use {lowest} <= low <= high <= {highest}.",
            )
        for name in ("noise_hu", "brightness_hu", "shift_mm", "box_mm"):
            _require(0 <= getattr(self, name) <= 200, f"augment.{name}={getattr(self, name)}: use 0..200.")


@dataclass(frozen=True)
class ModelConfig:
    arch: str = "unet"
    """Simple_unet (5 levels, no pretraining) or any architecture of segmentation_models_pytorch."""
    encoder: str = "resnet34"
    """Any encoder of segmentation_models_pytorch; not used by simple_unet."""
    encoder_weights: str = "imagenet"
    """Imagenet, none, or the path of a .safetensors or .pth state dict."""
    width: int = 64
    """Channels of the first level, doubled at each of the next; a resnet unet takes less untrained."""
    regions: tuple[str, ...] = ("kidney_and_mass",)
    """Nested sigmoids to predict: kidney_and_mass, mass, tumor."""
    prior: float = 0.01
    """Probability of every region in every pixel at the start; 0.5 leaves the head as it is drawn."""

    def __post_init__(self) -> None:
        ordered = tuple(name for name in REGIONS if name in self.regions)
        _require(
            ordered == tuple(self.regions) and bool(ordered),
            f"model.regions={list(self.regions)}: choose from {list(REGIONS)}, each once and in this order.",
        )
        _require(0 < self.prior <= 0.5, f"model.prior={self.prior}: use a probability above 0, up to 0.5.")
        _require(1 <= self.width <= 512, f"model.width={self.width}: use 1..512 channels.")


@dataclass(frozen=True)
class OptimConfig:
    name: Literal["adam", "adamw", "sgd"] = "adam"
    """Optimiser; sgd has Nesterov momentum 0.9."""
    lr: float = 1e-3
    """Learning rate at its highest."""
    scale_lr: Literal["none", "linear", "sqrt"] = "none"
    """Grow the rate with the number of processes."""
    weight_decay: float = 0.0
    """L2 (adam, sgd) or decoupled (adamw)."""
    epochs: int = 100
    """Passes over the training slices, at most."""
    patience: int = 10
    """Validations without improvement before early stopping; 0 never stops early."""
    best_by: Literal["loss", "dice"] = "loss"
    """What makes a checkpoint the best: validation loss, or mean val Dice."""
    accumulate: int = 1
    """Steps of batch_size per optimiser step."""
    schedule: Literal["constant", "cosine", "poly"] = "constant"
    """Learning rate over the run."""
    warmup_steps: int = 0
    """Optimiser steps of linear warm-up."""
    clip_norm: float | None = None
    """Clip the gradient's norm to this; none does not clip."""
    ema: float = 0.0
    """Decay of averaged weights, which are then judged and kept, as 0.999; 0 keeps the last ones."""
    loss: Literal["bce", "dice", "bce_dice", "focal", "tversky"] = "bce"
    """On region logits."""
    pos_weight: tuple[float, ...] | None = None
    """Weight of inside pixels in BCE and focal, one per region."""
    region_weight: tuple[float, ...] | None = None
    """Weight of each region in the loss; none: all the same."""

    def __post_init__(self) -> None:
        _require(0 <= self.lr < math.inf, f"optim.lr={self.lr} must be 0 or more, and finite.")
        _require(
            0 <= self.weight_decay < math.inf, f"optim.weight_decay={self.weight_decay} must be 0 or more, finite."
        )
        _require(self.epochs > 0, f"optim.epochs={self.epochs} must be at least 1.")
        _require(self.patience >= 0, f"optim.patience={self.patience} must be 0 (never) or more.")
        _require(self.accumulate > 0, f"optim.accumulate={self.accumulate} must be at least 1.")
        _require(self.warmup_steps >= 0, f"optim.warmup_steps={self.warmup_steps} must be 0 or more.")
        _require(self.clip_norm is None or self.clip_norm > 0, f"optim.clip_norm={self.clip_norm} must be above 0.")
        _require(0 <= self.ema < 1, f"optim.ema={self.ema}: use 0 (off) or a decay below 1, as 0.999.")
        for name in ("pos_weight", "region_weight"):
            weights = getattr(self, name)
            _require(
                weights is None or all(0 < w < math.inf for w in weights),
                f"optim.{name}={weights}: each must be above 0, and finite.",
            )


@dataclass(frozen=True)
class TrainConfig:
    precision: Literal["auto", "fp32", "tf32", "fp16", "bf16"] = "auto"
    """auto: the launcher's, else bf16, fp16 or fp32."""
    compile: bool = False
    """Torch.compile network and loss as one graph; half a minute or more at the start."""
    channels_last: bool = True
    """Memory order that tensor cores want."""
    sync_bn: bool = False
    """Batch norm over the batches of all GPUs; slower, for small batches."""
    deterministic: bool = False
    """Bit-equal repeats; slower on a GPU, and log.jsonl names what has no such kernel."""
    bucket_mb: int = 25
    """Gradients travel between processes in pieces of so many MB, while others are computed."""
    gradients: Literal["fp32", "bf16"] = "fp32"
    """As which they travel; bf16: half the bytes, rounded to 8 bits."""
    static_graph: bool = False
    """Promises DDP that all steps use the same weights in the same order."""
    profile: bool = False
    """A trace of a few steps into RUN/profile, and where their time went, in words."""
    save_every_steps: int = 0
    """Checkpoints between validations; 0 saves at the end of each epoch only."""
    keep: int = 2
    """Checkpoints kept beside the best one."""
    timeout_s: int = 600
    """How long a rank waits for the others, at the start and in each step, before it gives up."""

    def __post_init__(self) -> None:
        _require(self.save_every_steps >= 0, f"train.save_every_steps={self.save_every_steps} must be 0 or more.")
        _require(self.keep > 0, f"train.keep={self.keep} must be at least 1.")
        _require(1 <= self.timeout_s <= 86400, f"train.timeout_s={self.timeout_s} seconds: use 1..86400.")
        _require(1 <= self.bucket_mb <= 1024, f"train.bucket_mb={self.bucket_mb} MB: use 1..1024.")
        _require(
            not (self.static_graph and self.deterministic),
            "train.static_graph=true sorts the gradients anew in the third step of each start, so a resumed run would "
            "not be bit-equal. Leave it out, or train.deterministic.",
        )


@dataclass(frozen=True)
class LogConfig:
    every_steps: int = 10
    """A line of loss, rate and speed every so many optimiser steps."""
    images: int = 4
    """Slices in the TensorBoard panel of each validation; 0 draws none."""

    def __post_init__(self) -> None:
        _require(self.every_steps > 0, f"log.every_steps={self.every_steps} must be at least 1.")
        _require(0 <= self.images <= 64, f"log.images={self.images}: use 0..64.")


@dataclass(frozen=True)
class Config:
    run: str = MISSING
    """Folder of this run; everything it makes lies there."""
    resume: Literal["none", "auto"] = "none"
    """Auto continues from the last good checkpoint in `run`, if any."""
    seed: int = 0
    """Of weights, order and augmentation."""
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    log: LogConfig = field(default_factory=LogConfig)

    def __post_init__(self) -> None:
        for name in ("pos_weight", "region_weight"):
            weights = getattr(self.optim, name)
            _require(
                weights is None or len(weights) == len(self.model.regions),
                f"optim.{name}={weights} has {len(weights or ())} weights for {len(self.model.regions)} regions "
                f"{list(self.model.regions)}; give one each.",
            )
        _require(
            not self.train.static_graph or self.optim.accumulate == 1,
            f"train.static_graph=true with optim.accumulate={self.optim.accumulate}: DDP's reducer fails where a pass "
            "that exchanges nothing comes first. Leave one of them out.",
        )
        _require(0 <= self.seed < 2**31, f"seed={self.seed}: use 0..{2**31 - 1}.")


def as_plain(config: Any) -> dict:
    """Nested dict of yaml types; tuples become lists."""
    return yaml.safe_load(yaml.safe_dump(_listed(asdict(config))))


def save_config(config: Config, path: Path) -> None:
    files.write_bytes(path, yaml.safe_dump(as_plain(config), sort_keys=False).encode())


def _listed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _listed(item) for key, item in value.items()}
    return [_listed(item) for item in value] if isinstance(value, (tuple, list)) else value
