"""2D kidney and kidney-tumor segmentation on CT: DALI cuts and augments slices, Accelerate trains on any GPUs."""

__version__ = "0.1.0"
