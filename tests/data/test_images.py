from fractions import Fraction

import numpy as np
import pytest
import torch

from fastadv.data import to_unit_interval


def _rounded_once() -> torch.Tensor:
    return torch.tensor([np.float32(float(Fraction(k, 255))) for k in range(256)])


def test_every_byte_is_divided_by_255_with_one_rounding():
    x = to_unit_interval(torch.arange(256, dtype=torch.uint8))
    assert x.dtype == torch.float32
    assert torch.equal(x, _rounded_once())


def test_cuda_gives_the_bits_of_the_cpu():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    x = to_unit_interval(torch.arange(256, dtype=torch.uint8, device="cuda"))
    assert torch.equal(x.cpu(), _rounded_once())


def test_memory_format_is_kept():
    images = torch.zeros(2, 3, 4, 4, dtype=torch.uint8).contiguous(
        memory_format=torch.channels_last
    )
    assert to_unit_interval(images).stride() == images.stride()


def test_float_images_are_refused():
    with pytest.raises(TypeError, match=r"images must be uint8; got torch\.float32\."):
        to_unit_interval(torch.zeros(1))
