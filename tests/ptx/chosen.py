"""Tests of tests/ops, under tests/, that run over executed PTX in every build.

as_compiled.py has every op in its forms. These add what attacks on small images leave out: every
dtype of the L-infinity updates, whose bits are the references', starts, many classes, model inputs.
"""

_DTYPES = ("float64", "float16", "bfloat16")
_ROUNDING = "test_other_dtypes_compute_in_fp32_or_fp64_and_round_once[triton-torch."
_START = "ops/noise/test_start.py::"
_HEADS = "ops/heads/test_heads.py::"
_LOSSES = ("ce", "margin", "dlr", "kl", "ce_targeted", "margin_targeted", "dlr_targeted")
_PROJECTION = "ops/fab/test_fab_projection.py::test_projection_is_the_exact_one[triton-"
_INPUT = "test_model_input_is_the_normalised_step[triton-"

LINF_UPDATES = [
    *[f"ops/steps/test_linf.py::{_ROUNDING}{dtype}]" for dtype in _DTYPES],
    *[f"ops/apgd/test_apgd_linf.py::{_ROUNDING}{dtype}]" for dtype in _DTYPES],
    *[f"ops/square/test_square_linf.py::test_dtypes[triton-dtype{i}]" for i in range(3)],
]

# what also runs on other architectures and with warps in a random order: beginnings of names
AGAIN = ("ptx/as_compiled.py::test_in_mid_attack", *LINF_UPDATES)

CHOSEN = [
    *LINF_UPDATES,
    "ops/steps/test_linf.py::test_in_place_equals_the_textbook_expression[triton-(1023,)]",
    "ops/steps/test_linf.py::test_in_place_equals_the_textbook_expression[triton-(21504,)]",
    "ops/square/test_square_linf.py::test_any_lookahead_is_the_textbook_attack[triton-(3, 5, 7)-3]",
    f"{_START}test_backends_agree[l1_gaussian-(2, 1023)-None]",
    f"{_START}test_backends_agree[l1_gaussian-(2, 3, 32, 32)-(0.0, 1.0)]",
    f"{_START}test_backends_agree[l2_gaussian-(2, 1023)-None]",
    f"{_START}test_backends_agree[linf_gaussian-(2, 3, 32, 32)-(0.0, 1.0)]",
    f"{_START}test_eps_for_each_sample[triton-l1_gaussian]",
    f"{_START}test_eps_for_each_sample[triton-l2_sphere]",
    *[f"{_HEADS}test_triton_equals_the_reference[{loss}]" for loss in _LOSSES],
    f"{_HEADS}test_more_classes_than_a_block_holds[triton-ce-True-dtype4]",
    f"{_HEADS}test_label_smoothing_is_that_of_torch[triton-True]",
    f"{_PROJECTION}l1-uniform-75]",
    f"{_PROJECTION}l1-uniform-784]",
    f"{_PROJECTION}l2-uniform-5000]",
    f"ops/steps/test_l2_promises.py::{_INPUT}True-True-False]",
    f"ops/steps/test_l1_promises.py::{_INPUT}True-True-False]",
    "ops/augment/test_augment.py::test_normalising_rounds_as_the_model_wrapper_does"
    "[triton-torch.float32-True]",
]
