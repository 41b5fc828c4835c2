"""Configuration of a training run: frozen dataclasses whose defaults are our recipe; yaml holds what differs.

Values that cannot work are refused here, before a GPU is touched. The docstring under a field is its help text.
"""

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from omegaconf import MISSING

from kits_dist.labels import REGIONS
from kits_dist.utils import files
from kits_dist.utils.errors import InputError

# auto: half precision where the hardware has it, else fp32
PrecisionName = Literal["auto", "fp32", "tf32", "fp16", "bf16"]
Tta = Literal["none", "flip"]  # test-time augmentation


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise InputError(message)


def _require_bounds(config: Any, low: float, high: float, *keys: str) -> None:
    """Raise InputError for a field below `low` or above `high`, for NaN and for infinity."""
    allowed = f"{low} or more, but finite" if high == math.inf else f"{low}..{high}"
    for key in keys:
        value = getattr(config, key.split(".")[-1])
        _require(value is None or (low <= value <= high and value != math.inf), f"{key}={value}: use {allowed}.")


_PLANES = {"axial", "coronal", "sagittal"}


@dataclass(frozen=True)
class DataConfig:
    """The store, its split, and how slices become batches."""

    store: str = MISSING
    """Folder written by kits_dist.prepare."""
    fold: int | str = 0
    """Validation fold, counted from 0; `all` trains and validates on every case outside the test set."""
    batch_size: int = 128
    """Slices per process and step; a step takes this times the number of processes times optim.accumulate."""
    size_px: tuple[int, int] = (512, 512)
    """Height and width of the network's input, multiples of 32; 256x256 is also accepted."""
    pixel_mm: float | None = None
    """Pixel size to which every case is resampled; `none` keeps the pixel size of each case."""
    slices: Literal["all", "kidney"] = "all"
    """Train on `all` slices, or only on those within `data.margin` slices of a `kidney`."""
    margin: int = 10
    """Slices kept above and below the kidneys with data.slices=kidney."""
    planes: tuple[str, ...] = ("axial",)
    """Planes to cut along: `axial`, `coronal`, `sagittal`; the store must have been prepared with them."""
    box: Literal["body", "kidney"] = "body"
    """What a sample shows: the `body`, or the box around one `kidney` (second phase of a cascade)."""
    mask: Literal["none", "kidney"] = "none"
    """Whole slices of which only the `kidney` with its masses is shown (the poster's second phase): as annotated in
    training, as another run found it in a cascade."""
    box_margin_mm: float = 20.0
    """Margin around each kidney on all sides with data.box=kidney, in mm."""
    context: int = 0
    """Neighboring slices on each side, given to the network as further input channels."""
    backend: Literal["auto", "dali", "opencv", "fixed"] = "auto"
    """Data loader: `dali`; `opencv`, which uses CPU threads; `auto`, DALI on a GPU and `opencv` without one; or
    `fixed`, one repeated batch, to measure the ceiling."""
    residency: Literal["mmap", "gpu", "auto"] = "mmap"
    """Where training slices are kept: `mmap`, in files; `gpu`, in GPU memory; `auto`, in GPU memory if they fit."""
    sampler: Literal["natural", "foreground", "tumor", "cyst", "case"] = "natural"
    """Composition of an epoch: `natural` takes each slice once; `foreground`, `tumor` and `cyst` give slices with
    that label the share `data.share`; `case` gives every case the same number."""
    share: float = 0.33
    """Share of an epoch for slices with the label that `data.sampler` names."""
    threads: int = 0
    """CPU threads of the loader per process; 0 divides the cores among the processes of a machine."""
    prefetch: int = 2
    """Number of batches prepared ahead."""

    def __post_init__(self) -> None:
        _require(
            all(0 < n <= 8192 and n % 32 == 0 for n in self.size_px),
            f"data.size_px={self.size_px}: each must be a positive multiple of 32 (five levels), at most 8192. "
            "Example: data.size_px=352x448",
        )
        _require(0 < self.share < 1, f"data.share={self.share}: use a share between 0 and 1, both excluded.")
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
            "data.box=kidney takes the slices of each kidney's box. Leave out data.slices; set data.box_margin_mm.",
        )
        _require(
            self.mask == "none" or (self.box == "body" and self.context == 0),
            "data.mask=kidney shows whole slices without neighbors. Leave out data.box and data.context.",
        )
        _require(
            self.fold == "all" or (isinstance(self.fold, int) and self.fold >= 0),
            f"data.fold={self.fold!r}: use a fold number from 0, or all.",
        )
        _require_bounds(self, 1, math.inf, "data.batch_size")
        _require_bounds(self, 0.1, 20, "data.pixel_mm")
        _require_bounds(self, 0, 10**6, "data.margin")
        _require_bounds(self, 0, 200, "data.box_margin_mm")
        _require_bounds(self, 0, 8, "data.context")
        _require_bounds(self, 0, 1024, "data.threads")
        _require_bounds(self, 1, 64, "data.prefetch")


@dataclass(frozen=True)
class AugmentConfig:
    """Random changes to training slices. Each is drawn per sample with its own probability."""

    rotate_deg: float = 15.0
    """Largest rotation in either direction, in degrees."""
    rotate_p: float = 0.5
    """Probability of a rotation."""
    flip: float = 0.5
    """Probability of a left-right flip."""
    flip_vertical: float = 0.0
    """Probability of an up-down flip, which no patient shows; the poster's networks were trained with it."""
    scale: tuple[float, float] = (0.85, 1.15)
    """Range of the magnification factor."""
    scale_p: float = 0.3
    """Probability of a magnification."""
    crop: float = 1.0
    """Probability of a window at a random place; otherwise it is centered on the body."""
    zoom_crop: float = 1.35
    """Magnification of a part of the window at a random place; 512/380 for the poster's crop of 380 pixels."""
    zoom_crop_p: float = 0.0
    """Probability of such a crop, in addition to `augment.scale`."""
    box_mm: float = 10.0
    """Largest shift of each side of a kidney's box in either direction, in mm (data.box=kidney)."""
    shift_mm: float = 10.0
    """Largest shift of the window along each axis in either direction, in mm."""
    shift_p: float = 0.0
    """Probability of a shift."""
    blur_px: tuple[float, float] = (0.5, 1.5)
    """Range of the standard deviation of the Gaussian blur, in pixels of the network's input."""
    blur_p: float = 0.0
    """Probability of a blur."""
    brightness_hu: float = 20.0
    """Largest change of brightness in either direction, in HU."""
    brightness_p: float = 0.0
    """Probability of a change of brightness."""
    contrast: tuple[float, float] = (0.75, 1.25)
    """Range of the contrast factor, applied to the distance from the middle of the HU window."""
    contrast_p: float = 0.0
    """Probability of a change of contrast."""
    gamma: tuple[float, float] = (0.7, 1.5)
    """Range of the exponent applied to the HU window scaled to 0..1."""
    gamma_p: float = 0.0
    """Probability of a gamma correction."""
    noise_hu: float = 15.0
    """Largest standard deviation of the Gaussian noise, in HU."""
    noise_min_hu: float = 0.0
    """Smallest one. The poster's noise has 3.2 to 7.1 HU, a variance of 10 to 50."""
    noise_p: float = 0.15
    """Probability of noise."""

    def __post_init__(self) -> None:
        for name in ("flip", "flip_vertical", "crop", *(name for name in vars(self) if name.endswith("_p"))):
            p = getattr(self, name)
            _require(0 <= p <= 1, f"augment.{name}={p} is a probability: use 0..1.")
        _require_bounds(self, 0, 180, "augment.rotate_deg")
        _require_bounds(self, 1, 4, "augment.zoom_crop")
        _require_bounds(self, 0, 200, "augment.noise_hu", "augment.brightness_hu", "augment.shift_mm", "augment.box_mm")
        _require(
            0 <= self.noise_min_hu <= self.noise_hu,
            f"augment.noise_min_hu={self.noise_min_hu}: use 0 .. augment.noise_hu={self.noise_hu}.",
        )
        for name, lowest, highest in [
            ("scale", 0.25, 4),
            ("blur_px", 0.1, 10),
            ("contrast", 0.1, 10),
            ("gamma", 0.1, 10),
        ]:
            low, high = getattr(self, name)
            in_order = lowest <= low <= high <= highest
            _require(in_order, f"augment.{name}={[low, high]}: use {lowest} <= low <= high <= {highest}.")


@dataclass(frozen=True)
class ModelConfig:
    """The network and what it predicts."""

    arch: str = "unet"
    """Architecture: `simple_unet` (5 levels, no pretraining) or any architecture of segmentation_models_pytorch."""
    encoder: str = "resnet34"
    """Encoder of segmentation_models_pytorch; `simple_unet` does not use it."""
    encoder_weights: str = "imagenet"
    """Pretrained weights of the encoder: `imagenet`, `none`, or the path of a .safetensors or .pth state dict."""
    width: int = 64
    """Channels of the first level, doubled at each further level; other values than 64 need `simple_unet`, or a
    ResNet U-Net without pretrained weights."""
    regions: tuple[str, ...] = ("kidney_and_mass",)
    """Nested regions to predict, one sigmoid each: `kidney_and_mass`, `mass`, `tumor`."""
    prior: float = 0.01
    """Probability of every region in every pixel before training; 0.5 keeps the random initialization."""

    def __post_init__(self) -> None:
        ordered = tuple(name for name in REGIONS if name in self.regions)
        _require(
            ordered == tuple(self.regions) and bool(ordered),
            f"model.regions={list(self.regions)}: choose from {list(REGIONS)}, each once and in this order.",
        )
        _require(0 < self.prior <= 0.5, f"model.prior={self.prior}: use a probability above 0, up to 0.5.")
        _require_bounds(self, 1, 512, "model.width")


@dataclass(frozen=True)
class OptimConfig:
    """The optimizer, its schedule, and the loss."""

    name: Literal["adam", "adamw", "sgd"] = "adam"
    """Optimizer; `sgd` uses Nesterov momentum 0.9."""
    lr: float = 1e-3
    """Highest learning rate."""
    scale_lr: Literal["none", "linear", "sqrt"] = "none"
    """Factor on the learning rate: `linear`, the number of processes; `sqrt`, its square root; `none`, 1."""
    weight_decay: float = 0.0
    """Weight decay: an L2 penalty for `adam` and `sgd`, decoupled for `adamw`."""
    epochs: int = 100
    """Maximum number of passes over the training slices."""
    patience: int = 10
    """Validations without improvement before early stopping; 0 turns early stopping off."""
    best_by: Literal["loss", "dice"] = "loss"
    """Criterion of the best checkpoint: lowest validation `loss`, or highest mean validation `dice`."""
    accumulate: int = 1
    """Batches accumulated per optimizer step."""
    schedule: Literal["constant", "cosine", "poly"] = "constant"
    """Shape of the learning rate over the run, after the warm-up."""
    warmup_steps: int = 0
    """Optimizer steps of linear warm-up."""
    clip_norm: float | None = None
    """Maximum norm of the gradient; `none` turns clipping off."""
    ema: float = 0.0
    """Decay of the exponential moving average of the weights, such as 0.999, which is then validated and saved; 0
    turns it off."""
    loss: Literal["bce", "dice", "bce_dice", "focal", "tversky"] = "bce"
    """Loss, computed on the region logits."""
    pos_weight: tuple[float, ...] | None = None
    """Weight of the pixels inside a region in BCE and focal loss, one value per region."""
    region_weight: tuple[float, ...] | None = None
    """Weight of each region in the loss; `none` weights all alike."""

    def __post_init__(self) -> None:
        _require_bounds(self, 0, math.inf, "optim.lr", "optim.weight_decay", "optim.patience", "optim.warmup_steps")
        _require_bounds(self, 1, math.inf, "optim.epochs", "optim.accumulate")
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
    """How the training runs: precision, processes, checkpoints."""

    precision: PrecisionName = "auto"
    """Numerical precision; `auto` takes the launcher's, otherwise bf16, fp16 or fp32, whichever the device supports.
    `python -m benchmarks.model` measures which one is fastest: cuDNN has batch norm in channels_last for fp16 only."""
    compile: bool = False
    """Compile the network and the loss with torch.compile; takes half a minute or more at the start. Compiled around
    DDP, so that gradients are exchanged while backward still runs."""
    channels_last: bool = True
    """Use the channels-last memory format, which tensor cores prefer."""
    sync_bn: bool = False
    """Compute batch norm over the batches of all GPUs; useful with small batches, slower: at each layer the host waits
    for the statistics of all GPUs."""
    deterministic: bool = False
    """Make runs repeat bit for bit; slower on a GPU, and log.jsonl names operations without such a kernel."""
    bucket_mb: int = 25
    """Size of the gradient buckets that DDP exchanges while it computes the next ones, in MB."""
    gradients: Literal["fp32", "bf16"] = "fp32"
    """Data type in which gradients are exchanged; `bf16` halves the bytes and keeps 8 bits of precision."""
    static_graph: bool = False
    """Promise DDP that every step uses the same weights in the same order."""
    profile: bool = False
    """Write a trace of a few steps to RUN/profile, with a summary of where the time went."""
    save_every_steps: int = 0
    """Steps between checkpoints within an epoch; 0 saves at the end of each epoch only."""
    keep: int = 2
    """Checkpoints kept in addition to the best one."""
    timeout_s: int = 600
    """Seconds that a rank waits for the others, at the start and in each step, before it aborts."""

    def __post_init__(self) -> None:
        _require_bounds(self, 1, 1024, "train.bucket_mb")
        _require_bounds(self, 0, math.inf, "train.save_every_steps")
        _require_bounds(self, 1, math.inf, "train.keep")
        _require_bounds(self, 1, 86400, "train.timeout_s")
        _require(
            not (self.static_graph and self.deterministic),
            "train.static_graph=true reorders the gradients in the third step after each start, so a resumed run would "
            "not be bit-equal. Leave it or train.deterministic out.",
        )


@dataclass(frozen=True)
class LogConfig:
    """What is logged, and how often."""

    every_steps: int = 10
    """Optimizer steps between log lines of loss, learning rate and speed."""
    images: int = 4
    """Slices in the TensorBoard panel of each validation; 0 turns the panel off."""
    poster: bool = False
    """Whether `kits_dist.evaluate run=` prints the poster's measure of this run, too, as with poster=true."""

    def __post_init__(self) -> None:
        _require_bounds(self, 1, math.inf, "log.every_steps")
        _require_bounds(self, 0, 64, "log.images")


@dataclass(frozen=True)
class Config:
    """A training run."""

    run: str = MISSING
    """Folder of this run; everything it writes goes there."""
    resume: Literal["none", "auto"] = "none"
    """`auto` continues from the last good checkpoint in `run`, if there is one."""
    seed: int = 0
    """Seed of the weights, the sample order and the augmentation."""
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
            f"train.static_graph=true with optim.accumulate={self.optim.accumulate}: DDP fails when a backward pass "
            "without an exchange of gradients comes first. Leave one of them out.",
        )
        _require_bounds(self, 0, 2**31 - 1, "seed")


def as_plain(config: Any) -> dict:
    """Return the configuration as nested dicts of yaml types; tuples become lists."""
    return json.loads(json.dumps(asdict(config), sort_keys=True))


def save_config(config: Config, path: Path) -> None:
    """Write the configuration as yaml; loading it with `config=` returns an equal one."""
    files.write_bytes(path, yaml.safe_dump(as_plain(config), sort_keys=False).encode())
