"""Trained networks at work on scans: warping -> region_models -> cascade, fusion -> predictor."""

from kits_dist.inference.predictor import Predictor

__all__ = ["Predictor"]
