"""Conversion of byte images to network inputs."""

import torch


def to_unit_interval(images: torch.Tensor) -> torch.Tensor:
    """Byte images as float32 in [0, 1]: images / 255, rounded once.

    images: uint8, any shape; device and memory format are kept. Raises TypeError for another dtype.

    >>> to_unit_interval(torch.tensor([0, 51, 255], dtype=torch.uint8))
    tensor([0.0000, 0.2000, 1.0000])
    """
    if images.dtype != torch.uint8:
        raise TypeError(
            f"images must be uint8; got {images.dtype}. Images that are floats need no conversion "
            "when they lie in [0, 1]."
        )
    # A tensor on the device, not the number 255: on CUDA torch divides by a host scalar through
    # its reciprocal (ATen, div_true_kernel_cuda), which rounds 126 of the 256 bytes differently.
    divisor = torch.full((), 255.0, dtype=torch.float32, device=images.device)
    return images.to(torch.float32) / divisor
