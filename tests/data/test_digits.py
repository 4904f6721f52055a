import hashlib
import random
from importlib import resources

import numpy as np
import pytest
import torch

from fastadv.data import load_digits

# of the 1,797 images and labels as bytes, in the published order; equal to scikit-learn's
_SHA256 = "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"
# of the 360 held-out ones: results quoted on them are comparable only while the split stays
_TEST_SHA256 = "5ccada37b7bb7f1f6c82ce692240cdd85316d88108a076b814838b16b5a691e5"


def test_the_embedded_images_and_labels_are_the_published_ones():
    with resources.files("fastadv.data").joinpath("digits.npz").open("rb") as file:
        with np.load(file, allow_pickle=False) as arrays:
            content = arrays["images"].tobytes() + arrays["labels"].tobytes()
    assert hashlib.sha256(content).hexdigest() == _SHA256


def test_the_licence_lies_beside_the_data():
    text = resources.files("fastadv.data").joinpath("DIGITS_LICENCE.md").read_text("utf-8")
    assert "CC BY 4.0" in text and "10.24432/C50P49" in text


def test_the_first_digit_is_a_zero_in_sixteenths():
    x, y = load_digits("test")
    assert y[0] == 0
    assert torch.equal(x[0, 0, 0] * 16, torch.tensor([0.0, 0, 5, 13, 9, 1, 0, 0]))
    assert torch.equal(x[0, 0, 7] * 16, torch.tensor([0.0, 0, 6, 13, 10, 0, 0, 0]))


@pytest.mark.parametrize(
    ("split", "counts"),
    [
        ("train", [142, 146, 141, 147, 144, 146, 145, 143, 139, 144]),
        ("test", [36, 36, 36, 36, 37, 36, 36, 36, 35, 36]),
    ],
)
def test_both_splits_are_balanced(split, counts):
    x, y = load_digits(split)
    assert torch.bincount(y).tolist() == counts
    assert x.shape == (sum(counts), 1, 8, 8)
    assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
    assert (x.min(), x.max()) == (0, 1)


def test_the_held_out_images_are_the_same_for_ever():
    x, y = load_digits("test")
    content = (x * 16).byte().numpy().tobytes() + y.byte().numpy().tobytes()
    assert hashlib.sha256(content).hexdigest() == _TEST_SHA256


def test_the_splits_share_no_image():
    train = {image.tobytes() for image in load_digits("train")[0].numpy()}
    test = {image.tobytes() for image in load_digits("test")[0].numpy()}
    assert len(train | test) == 1797


def test_the_caller_may_overwrite_what_it_got():
    x, y = load_digits("test")
    x.zero_(), y.zero_()
    assert load_digits("test")[0].sum() > 0 and load_digits("test")[1].sum() > 0


def test_global_generators_are_left_alone():
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    load_digits()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == before[1:]


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match=r"split must be 'train' or 'test'; got 'validation'\."):
        load_digits("validation")
