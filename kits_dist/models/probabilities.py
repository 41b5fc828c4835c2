"""What a trained network says of an image."""

import torch
from torch import Tensor, nn


@torch.inference_mode()
def region_probabilities(model: nn.Module, image: Tensor) -> Tensor:
    """(B, C, H, W) normalised -> (B, R, H, W) float32 probabilities, in evaluation mode."""
    was_training = model.training
    model.eval()
    logits = model(image.to(memory_format=torch.channels_last))
    model.train(was_training)
    return logits.float().sigmoid()
