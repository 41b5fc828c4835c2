"""What is done to each sample, as numbers: drawn in NumPy, from (seed, round, sample) and nothing else.

The sampler's round is the epoch, where each epoch holds each sample once. So a sample looks the same in any batch, on
any rank and after a resume. All geometry (rotation, flip, magnification, shift, resampling, window) is one 2x3 matrix,
hence one interpolation. What the numbers do to pixels: `augment.apply`.
"""

from typing import NamedTuple

import numpy as np

from kits_dist.config import AugmentConfig
from kits_dist.data.intensity import Box, Window
from kits_dist.data.shuffle import hashed, mix
from kits_dist.data.store import View

_STREAMS = (
    *("rotate", "angle", "flip", "scale", "zoom", "crop", "row", "column", "noise", "noise_sd", "noise_offset"),
    *("shift", "shift_y", "shift_x", "blur", "blur_px", "brightness", "bias", "contrast", "gain", "gamma", "exponent"),
    *("top", "bottom", "left", "right"),
)
# each stream's own key: multiples of the golden ratio, as splitmix64 steps
_KEYS = np.array([[k * 0x9E3779B97F4A7C15 % 2**64] for k in range(1, len(_STREAMS) + 1)], np.uint64)


class Params(NamedTuple):
    """What is done to each of B samples."""

    matrix: np.ndarray  # (B, 2, 3) float32, output (x, y) -> source (x, y), in pixels
    blur: np.ndarray  # (B,) float32 output pixels, sd of a Gaussian, 0 = none
    gain: np.ndarray  # (B,) float32, levels * gain + bias, 1 and 0 = none
    bias: np.ndarray  # (B,) float32 levels
    gamma: np.ndarray  # (B,) float32 exponent, 1 = none
    noise_sd: np.ndarray  # (B,) float32 levels, 0 = no noise
    noise_offset: np.ndarray  # (B,) int32, where in the noise bank this sample's noise begins

    @property
    def linear(self) -> np.ndarray:
        """(B,) bool: brightness or contrast was drawn."""
        return (self.gain != 1) | (self.bias != 0)


class Framing(NamedTuple):
    """What the network sees of a slice: a window of size_px pixels of `pixel_mm`."""

    size_px: tuple[int, int]  # (H, W)
    pixel_mm: float | None  # None: the slice's own pixels if axial, else square ones as wide as its columns

    def ratios(self, views: list[View]) -> np.ndarray:
        """(B, 2) source pixels per output pixel, (row, column); larger where the window would not hold a box that it
        must."""
        spacing = np.array([view.spacing_mm for view in views])
        if self.pixel_mm is not None:
            ratios = self.pixel_mm / spacing[:, 1:]
        else:
            axial = np.array([view.plane == "axial" for view in views])
            ratios = np.where(axial[:, None], 1.0, spacing[:, 2:] / spacing[:, 1:])
        sizes = np.array([view.body.size for view in views])
        least = np.maximum(1, (sizes / (ratios * self.size_px)).max(axis=1))
        return ratios * np.where([view.whole for view in views], least, 1)[:, None]


def uniforms(seed: int, rounds: np.ndarray, sample: np.ndarray) -> dict[str, np.ndarray]:
    """{stream: (B,) float64 in [0, 1)}, a counter-based hash of (seed, round, sample, stream)."""
    state = hashed(seed, rounds, sample)
    return dict(zip(_STREAMS, (mix(state + _KEYS) >> np.uint64(11)) * 2.0**-53, strict=True))


def draw(
    config: AugmentConfig, framing: Framing, views: list[View], window: Window, u: dict[str, np.ndarray], bank_size: int
) -> Params:
    """Parameters for B samples from their uniforms; `views` holds what each sample was cut from.

    A sagittal slice is never mirrored: that would turn front to back, which no patient shows.
    """
    views = [_jittered(view, config.box_mm, u, i) if view.whole else view for i, view in enumerate(views)]
    degrees = np.where(u["rotate"] < config.rotate_p, (2 * u["angle"] - 1) * config.rotate_deg, 0.0)
    symmetric = np.array([view.plane != "sagittal" for view in views])
    mirror = np.where((u["flip"] < config.flip) & symmetric, -1.0, 1.0)
    zoom = np.where(u["scale"] < config.scale_p, _between(config.scale, u["zoom"]), 1.0)
    random_window = u["crop"] < config.crop
    where = np.stack([u["row"], u["column"]], axis=1)
    corners = _corners(views, framing, where, random_window)
    way_mm = (2 * np.stack([u["shift_y"], u["shift_x"]], axis=1) - 1) * config.shift_mm
    spacing = np.array([view.spacing_mm[1:] for view in views])
    corners += np.where((u["shift"] < config.shift_p)[:, None], way_mm / spacing, 0)

    gain = np.where(u["contrast"] < config.contrast_p, _between(config.contrast, u["gain"]), 1.0)
    brighter = np.where(u["brightness"] < config.brightness_p, (2 * u["bias"] - 1) * config.brightness_hu, 0.0)
    return Params(
        matrices(framing, views, corners, degrees, mirror, zoom),
        blur=_drawn(u["blur"] < config.blur_p, _between(config.blur_px, u["blur_px"]), 0),
        gain=gain.astype(np.float32),
        bias=((1 - gain) * window.levels / 2 + brighter / window.step_hu).astype(np.float32),
        gamma=_drawn(u["gamma"] < config.gamma_p, _between(config.gamma, u["exponent"]), 1),
        noise_sd=_drawn(u["noise"] < config.noise_p, u["noise_sd"] * config.noise_hu / window.step_hu, 0),
        noise_offset=(u["noise_offset"] * bank_size).astype(np.int32),
    )


def _jittered(view: View, most_mm: float, u: dict[str, np.ndarray], i: int) -> View:
    """Each side of a kidney's box moved by whole pixels, as a network might have found it: within the slice, and not
    past the opposite side."""
    way = (2 * np.array([u[side][i] for side in Box._fields]) - 1) * most_mm
    mm, length = np.repeat(view.spacing_mm[1:], 2), np.repeat(view.shape[1:], 2)
    moved = Box(*np.clip(np.array(view.body) + np.rint(way / mm).astype(int), 0, length).tolist())
    return view._replace(body=moved) if min(moved.size) > 0 else view


def _between(limits: tuple[float, float], u: np.ndarray) -> np.ndarray:
    """Log-uniform, so that halving is as likely as doubling."""
    low, high = limits
    return low * (high / low) ** u


def _drawn(chosen: np.ndarray, values: np.ndarray, neutral: float) -> np.ndarray:
    return np.where(chosen, values, neutral).astype(np.float32)


def centred(framing: Framing, views: list[View]) -> Params:
    """No augmentation: the window centred on the body. What validation and prediction see."""
    still = np.zeros(len(views))
    corners = _corners(views, framing, np.zeros((len(views), 2)), still > 0)
    matrix = matrices(framing, views, corners, still, still + 1, still + 1)
    none, one = np.zeros(len(views), np.float32), np.ones(len(views), np.float32)
    return Params(matrix, none, one, none, one, none, np.zeros(len(views), np.int32))


def matrices(
    framing: Framing, views: list[View], corners: np.ndarray, degrees: np.ndarray, mirror: np.ndarray, zoom: np.ndarray
) -> np.ndarray:
    """(B, 2, 3) float32. Rotation, mirror (-1: left-right) and magnification act in mm about the window's centre.

    corners   (B, 2) source (row, column) of the window's upper left corner
    """
    ratio = framing.ratios(views)[:, ::-1]  # (B, 2) as (x, y)
    spacing = np.array([view.spacing_mm[:0:-1] for view in views])  # (B, 2) mm, (x, y)
    half = np.array(framing.size_px[::-1]) / 2
    angle = np.deg2rad(degrees)
    cos, sin = np.cos(angle) / zoom, np.sin(angle) / zoom
    turn = np.stack([np.stack([cos * mirror, -sin], -1), np.stack([sin * mirror, cos], -1)], 1)  # (B, 2, 2), mm -> mm
    linear = turn * (ratio * spacing)[:, None, :] / spacing[:, :, None]
    centre = corners[:, ::-1] + half * ratio
    offset = centre - linear @ half
    return np.concatenate([linear, offset[:, :, None]], axis=2).astype(np.float32)


def _corners(views: list[View], framing: Framing, where: np.ndarray, moved: np.ndarray) -> np.ndarray:
    """(B, 2) row and column of each window's corner in source pixels: placed by `where` in [0, 1)^2 if moved, else
    centred on the box.

    A window larger than the slice holds it whole, and one that must hold a box does so wherever it is placed. Along an
    axis that keeps its pixels the corner is a whole number: an odd difference of sizes would otherwise put an identity
    crop on half pixels and blur it.
    """
    ratios = framing.ratios(views)
    unscaled, windows = ratios == 1, ratios * framing.size_px
    boxes, whole = np.array([view.body for view in views]), np.array([[view.whole] for view in views])
    near, far = boxes[:, ::2], boxes[:, 1::2]  # (top, left), (bottom, right)
    room = np.array([view.shape[1:] for view in views]) - windows
    low, high = np.minimum(room, 0), np.maximum(room, 0)
    low = np.where(whole, np.maximum(low, far - windows), low)
    high = np.where(whole, np.maximum(low, np.minimum(high, near)), high)
    placed = low + np.where(unscaled, np.floor(where * (high - low + 1)), where * (high - low))
    centred = np.clip((near + far) / 2 - windows / 2, low, high)
    return np.where(moved[:, None], placed, np.where(unscaled, np.floor(centred), centred))
