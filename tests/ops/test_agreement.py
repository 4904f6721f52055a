"""How far results are apart, and how far they may be."""

import math

import pytest
import torch

from fastadv.ops import agreement
from fastadv.ops.agreement import Result


def between(found, expected, tolerance=0.0, elements=0):
    return agreement.difference([Result("a", found)], [Result("a", expected)], tolerance, elements)


def test_equal_results_agree_whatever_they_are():
    for value in (torch.tensor([1.0, math.nan, math.inf]), torch.tensor([1, 2]), torch.zeros(0)):
        assert between(value.clone(), value) == (0.0, "a", 0.0)


@pytest.mark.parametrize("tolerance", [0.0, 1e-4])
@pytest.mark.parametrize("found", [math.nan, math.inf, -math.inf, 5.0])
@pytest.mark.parametrize("expected", [math.nan, math.inf, -math.inf, 1.0])
def test_no_tolerance_allows_another_infinity_or_nan(found, expected, tolerance):
    said = between(torch.tensor([found]), torch.tensor([expected]), tolerance)
    is_same = found == expected or (math.isnan(found) and math.isnan(expected))
    assert said.is_allowed == is_same and (said.largest > 1) != is_same


def test_a_tolerance_is_of_floating_point_results_alone():
    assert not between(torch.tensor([3]), torch.tensor([2]), 10.0).is_allowed
    assert not between(torch.tensor([True]), torch.tensor([False]), 10.0).is_allowed


def test_a_tolerance_grows_with_values_and_with_what_is_added_up():
    one = torch.ones(4)
    assert between(one + 1e-4, one, 1.5e-4).is_allowed
    assert not between(one + 1e-4, one, 0.5e-4).is_allowed
    assert between(one + 1e-4, one, 0.5e-4, elements=4 * 192).is_allowed
    assert not between(one + 1e-4, one, 0.5e-4, elements=192).is_allowed
    assert between(100 * one + 1e-4, 100 * one, 0.5e-4).is_allowed


def test_a_result_of_half_precision_may_be_rounded_the_other_way():
    a, b = (torch.tensor([value], dtype=torch.bfloat16) for value in (1.0, 1.0078125))
    assert between(a, b, 1e-6).is_allowed
    assert not between(a, b, 0.0).is_allowed


def test_every_second_number_is_rounded_up_and_the_others_down():
    x, table, n = torch.tensor([1.0, 2.0, 0.0, -4.0]), torch.ones(2), torch.ones(4).long()
    ulp = torch.tensor([2.0**-23, 2.0**-22, 0.0, -(2.0**-21)])
    for sign in (1, -1):
        moved = agreement.copies([x, table, n], {1}, 4)
        agreement.round_otherwise(moved, {1}, sign)
        assert torch.equal(moved[0] - x, sign * ulp * torch.tensor([-1, 1, -1, 1]))
        assert moved[1] is table and torch.equal(moved[2], n) and (table == 1).all()


def test_an_ill_conditioned_result_may_differ_as_much_as_its_inputs_roundings_change_it():
    expected, otherwise = torch.tensor([1.0, 2.0]), torch.tensor([1.01, 2.0])

    def is_allowed(*found):
        values = ([Result("x", one)] for one in (torch.tensor(found), expected))
        return agreement.difference(*values, 1e-6, 0, [[Result("x", otherwise)]]).is_allowed

    assert is_allowed(1.03, 2.0)
    assert not is_allowed(1.05, 2.0) and not is_allowed(1.0, 2.03)


def test_another_shape_or_dtype_is_no_agreement():
    assert between(torch.zeros(2), torch.zeros(3), 1.0).largest == math.inf
    assert between(torch.zeros(2), torch.zeros(2).double(), 1.0).largest == math.inf


def test_the_worst_result_is_named():
    expected = [Result("x", torch.zeros(2)), Result("n", torch.zeros(2, dtype=torch.int64))]
    found = [Result("x", torch.full((2,), 3.0)), Result("n", torch.ones(2, dtype=torch.int64))]
    assert agreement.difference(found, expected, 10.0) == (1.0, "n", 0.0)
    assert agreement.difference(found, expected, 0.0) == (3.0, "x", 0.0)


@pytest.mark.parametrize("strides", [(12, 4, 1), (12, 1, 3), (24, 4, 1), (60, 20, 5), (0, 4, 1)])
def test_copies_keep_their_strides_and_share_nothing(strides):
    rows = torch.arange(400.0).as_strided((5, 3, 4), strides)
    (copy,) = agreement.copies([rows], (), 2)
    assert torch.equal(copy, rows[:2]) and copy.data_ptr() != rows.data_ptr()
    if 0 not in strides:
        assert copy.stride() == rows.stride()
    copy.fill_(0.0)
    assert rows.any()


def test_several_rows_a_sample_and_what_is_shared():
    x, proposals, table = torch.rand(4, 3), torch.rand(8, 3), torch.rand(3)
    call = [proposals, x, table, 0.5, None]
    few = agreement.copies(call, {2}, 3)
    assert torch.equal(few[0], proposals[:6]) and torch.equal(few[1], x[:3])
    assert few[2] is table and few[3:] == [0.5, None]
