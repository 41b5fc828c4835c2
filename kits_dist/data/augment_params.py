"""Augmentation parameters of each sample, drawn in NumPy from (seed, round, sample) and nothing else.

A round of the sampler is the epoch where each epoch holds each sample once, so a sample looks the same in any batch, on
any rank and after a resume. All geometry (rotation, flip, magnification, shift, resampling, window) is one 2x3 matrix,
hence one interpolation. What the parameters do to pixels is defined in `augment_reference.apply`.
"""

from typing import NamedTuple

import numpy as np

from kits_dist.config import AugmentConfig
from kits_dist.data.counter_rng import hashed, mix
from kits_dist.data.intensity import Box, Window
from kits_dist.data.store import SliceGeometry

_STREAMS = (
    *("rotate", "angle", "flip", "scale", "zoom", "crop", "row", "column", "noise", "noise_sd", "noise_offset"),
    *("shift", "shift_y", "shift_x", "blur", "blur_px", "brightness", "bias", "contrast", "gain", "gamma", "exponent"),
    *("top", "bottom", "left", "right", "flip_vertical"),
    *("zoom_crop", "zoom_row", "zoom_column"),
)
# One key per stream: multiples of the golden ratio, the increments of splitmix64.
_KEYS = np.array([[k * 0x9E3779B97F4A7C15 % 2**64] for k in range(1, len(_STREAMS) + 1)], np.uint64)


class AugmentParams(NamedTuple):
    """What is done to each of B samples."""

    matrix: np.ndarray  # (B, 2, 3) float32, output (x, y) -> source (x, y), in pixels
    blur: np.ndarray  # (B,) float32 output pixels, sd of a Gaussian, 0 = none
    gain: np.ndarray  # (B,) float32, levels * gain + bias, 1 and 0 = none
    bias: np.ndarray  # (B,) float32 levels
    gamma: np.ndarray  # (B,) float32 exponent, 1 = none
    noise_sd: np.ndarray  # (B,) float32 levels, 0 = no noise
    noise_offset: np.ndarray  # (B,) int32, where this sample's noise begins in `augment_reference.noise_bank`

    @property
    def linear(self) -> np.ndarray:
        """(B,) bool: brightness or contrast was drawn."""
        return (self.gain != 1) | (self.bias != 0)


class OutputGrid(NamedTuple):
    """The pixel grid of the network's input: a window of size_px pixels of `pixel_mm`."""

    size_px: tuple[int, int]  # (H, W)
    pixel_mm: float | None  # None: the slice's own pixels if axial, else square ones as wide as its columns

    def source_per_output(self, geometries: list[SliceGeometry]) -> np.ndarray:
        """Return (B, 2) source pixels per output pixel, (row, column).

        Larger where the window would otherwise be too small for a box that must fit.
        """
        spacing = np.array([geometry.spacing_mm for geometry in geometries])
        if self.pixel_mm is not None:
            ratio = self.pixel_mm / spacing[:, 1:]
        else:
            axial = np.array([geometry.plane == "axial" for geometry in geometries])
            ratio = np.where(axial[:, None], 1.0, spacing[:, 2:] / spacing[:, 1:])

        box_sizes = np.array([geometry.box.size for geometry in geometries])
        enlarged = np.maximum(1, (box_sizes / (ratio * self.size_px)).max(axis=1))
        return ratio * np.where([geometry.box_must_fit for geometry in geometries], enlarged, 1)[:, None]


def uniforms(seed: int, rounds: np.ndarray, samples: np.ndarray) -> dict[str, np.ndarray]:
    """Return {stream: (B,) float64 in [0, 1)}, a counter-based hash of (seed, round, sample, stream)."""
    state = hashed(seed, rounds, samples)
    return dict(zip(_STREAMS, (mix(state + _KEYS) >> np.uint64(11)) * 2.0**-53, strict=True))


def draw(
    config: AugmentConfig,
    grid: OutputGrid,
    geometries: list[SliceGeometry],
    window: Window,
    u: dict[str, np.ndarray],
    noise_offsets: int,
) -> AugmentParams:
    """Return the parameters of B samples, computed from their uniforms.

    geometries      of the B slices the samples are cut from
    window          HU window, which converts HU to levels
    u               what `uniforms` returned for the samples
    noise_offsets   at how many places of the noise bank a sample's noise can begin

    A sagittal slice is never mirrored: that would swap front and back, which no patient shows.
    """
    geometries = [
        _jittered(geometry, config.box_mm, u, i) if geometry.box_must_fit else geometry
        for i, geometry in enumerate(geometries)
    ]
    degrees = np.where(u["rotate"] < config.rotate_p, (2 * u["angle"] - 1) * config.rotate_deg, 0.0)
    may_flip = np.array([geometry.plane != "sagittal" for geometry in geometries])
    mirror = np.where((u["flip"] < config.flip) & may_flip, -1.0, 1.0)
    upside_down = np.where(u["flip_vertical"] < config.flip_vertical, -1.0, 1.0)
    zoom = np.where(u["scale"] < config.scale_p, _log_uniform(config.scale, u["zoom"]), 1.0)

    place = np.stack([u["row"], u["column"]], axis=1)
    corners = _corners(grid, geometries, place, u["crop"] < config.crop)
    shift_mm = (2 * np.stack([u["shift_y"], u["shift_x"]], axis=1) - 1) * config.shift_mm
    spacing = np.array([geometry.spacing_mm[1:] for geometry in geometries])
    corners += np.where((u["shift"] < config.shift_p)[:, None], shift_mm / spacing, 0)

    # A part of the window, enlarged to all of it: its center may be where the part still lies within the window.
    enlarged = (u["zoom_crop"] < config.zoom_crop_p)[:, None]
    off_center = np.stack([u["zoom_row"], u["zoom_column"]], axis=1) - 0.5
    room = grid.source_per_output(geometries) * grid.size_px * (1 - 1 / config.zoom_crop)
    corners += np.where(enlarged, off_center * room, 0)
    zoom *= np.where(enlarged[:, 0], config.zoom_crop, 1.0)

    # Contrast is a factor on the distance from the middle of the window, so it adds to the bias.
    gain = np.where(u["contrast"] < config.contrast_p, _log_uniform(config.contrast, u["gain"]), 1.0)
    brighter_hu = np.where(u["brightness"] < config.brightness_p, (2 * u["bias"] - 1) * config.brightness_hu, 0.0)
    bias = (1 - gain) * window.levels / 2 + brighter_hu / window.step_hu
    noise_hu = config.noise_min_hu + u["noise_sd"] * (config.noise_hu - config.noise_min_hu)
    noise_sd = noise_hu / window.step_hu
    return AugmentParams(
        matrix=matrices(grid, geometries, corners, degrees, mirror, zoom, upside_down),
        blur=_where(u["blur"] < config.blur_p, _log_uniform(config.blur_px, u["blur_px"]), 0),
        gain=gain.astype(np.float32),
        bias=bias.astype(np.float32),
        gamma=_where(u["gamma"] < config.gamma_p, _log_uniform(config.gamma, u["exponent"]), 1),
        noise_sd=_where(u["noise"] < config.noise_p, noise_sd, 0),
        noise_offset=(u["noise_offset"] * noise_offsets).astype(np.int32),
    )


def _jittered(geometry: SliceGeometry, max_mm: float, u: dict[str, np.ndarray], i: int) -> SliceGeometry:
    """Move each side of a kidney's box by whole pixels, as a network might have predicted it.

    The box stays within the slice; a move that would leave it empty is not made.
    """
    move_mm = (2 * np.array([u[side][i] for side in Box._fields]) - 1) * max_mm
    pixel_mm, limits = np.repeat(geometry.spacing_mm[1:], 2), np.repeat(geometry.shape[1:], 2)
    moved = Box(*np.clip(np.array(geometry.box) + np.rint(move_mm / pixel_mm).astype(int), 0, limits).tolist())
    return geometry._replace(box=moved) if min(moved.size) > 0 else geometry


def _log_uniform(limits: tuple[float, float], u: np.ndarray) -> np.ndarray:
    """Halving is as likely as doubling."""
    low, high = limits
    return low * (high / low) ** u


def _where(drawn: np.ndarray, values: np.ndarray, neutral: float) -> np.ndarray:
    return np.where(drawn, values, neutral).astype(np.float32)


def centered(grid: OutputGrid, geometries: list[SliceGeometry]) -> AugmentParams:
    """Return parameters without augmentation, the window centered on each box: for validation and prediction."""
    zero = np.zeros(len(geometries), np.float32)
    one = zero + 1
    corners = _corners(grid, geometries, np.zeros((len(geometries), 2)), zero > 0)
    return AugmentParams(
        matrix=matrices(grid, geometries, corners, degrees=zero, mirror=one, zoom=one),
        blur=zero,
        gain=one,
        bias=zero,
        gamma=one,
        noise_sd=zero,
        noise_offset=zero.astype(np.int32),
    )


def matrices(
    grid: OutputGrid,
    geometries: list[SliceGeometry],
    corners: np.ndarray,
    degrees: np.ndarray,
    mirror: np.ndarray,
    zoom: np.ndarray,
    upside_down: np.ndarray | float = 1.0,
) -> np.ndarray:
    """Return the (B, 2, 3) float32 matrices from output (x, y) to source (x, y).

    corners       (B, 2) source (row, column) of the window's upper left corner
    degrees       (B,) rotation
    mirror        (B,) -1 flips left and right, 1 does not
    zoom          (B,) magnification
    upside_down   (B,) -1 flips up and down, 1 does not

    Rotation, mirror and magnification act in mm about the center of the window.
    """
    ratio = grid.source_per_output(geometries)[:, ::-1]  # (B, 2) as (x, y)
    spacing = np.array([geometry.spacing_mm[:0:-1] for geometry in geometries])  # (B, 2) mm, (x, y)
    half = np.array(grid.size_px[::-1]) / 2
    angle = np.deg2rad(degrees)
    cos = np.cos(angle) / zoom
    sin = np.sin(angle) / zoom
    columns = [cos * mirror, sin * mirror], [-sin * upside_down, cos * upside_down]
    rotation = np.stack([np.stack(column, -1) for column in columns], -1)  # (B, 2, 2) in mm
    linear = rotation * (ratio * spacing)[:, None, :] / spacing[:, :, None]
    center = corners[:, ::-1] + half * ratio
    offset = center - linear @ half
    return np.concatenate([linear, offset[:, :, None]], axis=2).astype(np.float32)


def _corners(grid: OutputGrid, geometries: list[SliceGeometry], place: np.ndarray, random: np.ndarray) -> np.ndarray:
    """Return the (B, 2) row and column of each window's upper left corner, in source pixels.

    place    (B, 2) in [0, 1): where in the room there is, used where `random`
    random   (B,) bool; False: centered on the box

    A window larger than the slice holds all of it, and one that must hold a box does so wherever it is placed. Along an
    axis that is not resampled the corner is a whole number: an odd difference of sizes would otherwise put an identity
    crop on half pixels and blur it.
    """
    ratio = grid.source_per_output(geometries)
    unscaled = ratio == 1
    window = ratio * grid.size_px
    boxes = np.array([geometry.box for geometry in geometries])
    must_fit = np.array([[geometry.box_must_fit] for geometry in geometries])
    near, far = boxes[:, ::2], boxes[:, 1::2]  # (top, left), (bottom, right)

    room = np.array([geometry.shape[1:] for geometry in geometries]) - window
    low = np.minimum(room, 0)
    high = np.maximum(room, 0)
    low = np.where(must_fit, np.maximum(low, far - window), low)
    high = np.where(must_fit, np.maximum(low, np.minimum(high, near)), high)

    placed = low + np.where(unscaled, np.floor(place * (high - low + 1)), place * (high - low))
    centered = np.clip((near + far) / 2 - window / 2, low, high)
    return np.where(random[:, None], placed, np.where(unscaled, np.floor(centered), centered))
