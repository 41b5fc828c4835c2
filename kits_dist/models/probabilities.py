"""Region probabilities of a network in evaluation mode, for validation and prediction alike."""

import torch
from torch import Tensor, nn


@torch.inference_mode()
def region_probabilities(model: nn.Module, image: Tensor) -> Tensor:
    """Return (B, R, H, W) float32 probabilities of a normalized (B, C, H, W) image; the training mode is kept."""
    was_training = model.training
    model.eval()
    logits = model(image.to(memory_format=torch.channels_last))
    model.train(was_training)
    return logits.float().sigmoid()
