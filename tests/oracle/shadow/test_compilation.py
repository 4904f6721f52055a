"""torch.compile: the same logits, no weight gradients, no recompilation, and eager if it fails."""

import shutil
import warnings

import pytest
import torch
import torch.nn.functional as F
from functorch.compile import make_boxed_func
from shadow_problems import (
    Functional,
    conv_bn,
    images,
    in_float64,
    input_gradient,
    labels,
    lively,
    normalized_conv,
    normalized_preact,
    one_conv,
    relative,
    searching,
    trace,
)
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.utils import counters

import fastadv


def _name(value):
    return getattr(value, "__name__", str(value))


@pytest.fixture(autouse=True)
def _no_code_of_other_tests():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def _graphs():
    return counters["stats"]["unique_graphs"]


class _Masks:
    """A backend that keeps which gradients each compiled convolution backward computes."""

    def __init__(self):
        self.masks = []
        self.backend = aot_autograd(fw_compiler=self._look, bw_compiler=self._look)

    def _look(self, graph, inputs):
        for node in graph.graph.nodes:
            if "convolution_backward" in str(node.target):
                self.masks.append(tuple(node.args[-1]))
        return make_boxed_func(graph.forward)


@pytest.mark.parametrize(
    ("make", "asked"),
    [
        (one_conv, {}),
        (one_conv, {"fold_batchnorm": True}),
        (normalized_conv, {"precision": "bf16"}),
        (lambda: lively(Functional()), {}),
    ],
    ids=_name,
)
def test_no_weight_gradient_is_computed(make, asked):
    model, x, y = make().train(), images(), labels(images())
    masks = _Masks()
    with searching(model, x, compile=masks.backend, **asked) as search:
        input_gradient(search.forward, x, y)
    assert masks.masks and set(masks.masks) == {(True, False, False)}
    assert all(p.requires_grad for p in model.parameters())


def test_the_masks_show_weight_gradients_where_weights_are_trainable():
    """The trap itself: without detached parameters a compiled backward computes them."""
    masks = _Masks()
    run = torch.compile(one_conv(), backend=masks.backend)
    input_gradient(run, images(), labels(images()))
    assert (True, True, True) in masks.masks


def _assert_as_exact(forward, model, x, asked):
    """Logits and input gradients of `forward` are those of a float64 copy of `model`."""
    y = labels(x)
    logits64, grad64 = in_float64(model, x, y)
    logits, grad = input_gradient(forward, x, y)
    if "precision" in asked:  # autocast's own error: a ReLU may flip, hence the angle
        assert relative(logits, logits64) < 0.03
        assert F.cosine_similarity(grad.flatten(), grad64.float().flatten(), dim=0) > 0.99
    else:
        assert relative(logits, logits64) < 1e-5 and relative(grad, grad64) < 1e-5


def _change_in_place(model):
    """The first convolution's weight and the first running mean."""
    next(p for p in model.parameters() if p.ndim == 4).mul_(1.5)
    next(t for name, t in model.named_buffers() if name.endswith("running_mean")).add_(0.5)


# one test, as compiling is what costs: three graphs of each model. A copy that shares all memory:
# test_refresh_of_shared_memory_has_nothing_to_do
@pytest.mark.parametrize(
    ("make", "asked"),
    [
        (conv_bn, {"channels_last": True}),
        (conv_bn, {"precision": "bf16", "channels_last": True}),
        (normalized_preact, {"fold_batchnorm": True}),
    ],
    ids=_name,
)
def test_every_batch_size_runs_the_code_of_the_first_and_is_the_models(make, asked):
    model = make()
    with searching(model, images(40), compile="aot_eager", **asked) as search:
        assert not search.is_exact and search.notes == () and _graphs() == 1
        with torch._dynamo.config.patch(error_on_recompile=True):
            # 16: the CPU's convolutions have other code for fewer samples
            for n in (16, 17, 40, 200):
                _assert_as_exact(search.forward, model, images(n, seed=n), asked)
            if type(model) is fastadv.Normalized:
                for n in (16, 65):
                    z = model.normalize(images(n))
                    _assert_as_exact(search.forward_inner, model.model, z, asked)
        assert _graphs() == 1
        for seed in range(2):
            _assert_as_exact(search.forward, model, images(1, seed=seed), asked)
        assert _graphs() == 2
        for n in (33, 40, 50):  # another graph, without a backward pass
            before = search.forward(images(n))
            torch.testing.assert_close(before, model(images(n)), rtol=0.02, atol=0.02)
        _change_in_place(model)
        search.refresh()
        after, exact = search.forward(images(50)), model(images(50)).double()
        assert _graphs() == 3
    limit = 0.03 if "precision" in asked else 1e-5
    assert relative(after, exact) < limit < relative(before, exact)


def test_layers_that_are_not_convolutions_have_one_code_for_two_samples_and_more():
    model = lively(nn.Sequential(nn.Flatten(), nn.Linear(192, 20), nn.GELU(), nn.Linear(20, 5)))
    with searching(model, images(5), compile="aot_eager") as search:
        with torch._dynamo.config.patch(error_on_recompile=True):
            for n in (2, 3, 64, 65):
                input_gradient(search.forward, images(n), labels(images(n)))
    assert _graphs() == 1


def test_a_first_batch_of_one_sample_compiles_for_more_once():
    model = one_conv()
    with searching(model, images(1), compile="aot_eager") as search:
        for n in (40, 17, 1, 33):
            input_gradient(search.forward, images(n), labels(images(n)))
    assert _graphs() == 2


def test_the_next_model_of_a_kind_runs_the_code_of_the_last_with_its_own_weights():
    x = images(20)
    for seed in range(10):  # more than torch's limit of 8 variants
        model = lively(one_conv(), seed=seed)
        with searching(model, x, compile="aot_eager") as search:
            torch.testing.assert_close(search.forward(x), model(x))
    assert _graphs() == 2  # with and without a graph for the backward pass


def test_models_that_share_a_forward_are_all_compiled():
    """nn.Sequential has one forward for all: past 8 variants torch would run them uncompiled."""
    for classes in range(2, 11):
        model = lively(nn.Sequential(nn.Flatten(), nn.Linear(192, classes)))
        with searching(model, images(), compile="aot_eager"):
            pass
    assert _graphs() == 9


def _breaks(graph, inputs):
    raise RuntimeError("no such device\nand a long trace")


def _wrong(graph, inputs):
    return lambda *args: [output * 1.5 for output in graph.forward(*args)]


@pytest.mark.parametrize("backend", [_breaks, _wrong])
def test_a_compiler_that_fails_is_left_out_with_a_note(backend):
    model, x = one_conv(), images()
    with searching(model, x, compile=backend) as search:
        assert search.is_exact and search.compiled is None
        assert torch.equal(search.forward(x), model(x))
    (note,) = search.notes
    assert note.startswith("compile=") and "was left out: " in note
    assert ("no such device" if backend is _breaks else "logits at the first batch differ") in note
    assert "\n" not in note
    with searching(model, x, compile=backend, fold_batchnorm=True, precision="bf16") as search:
        assert search.precision == "bf16" and search.compiled is None and len(search.notes) == 1


@pytest.mark.parametrize("kind", ["function", "method", "uncopyable"])
def test_models_without_a_copy_are_compiled_too_and_frozen_all_the_same(kind):
    net, x, y = one_conv(), images(20), labels(images(20))
    holder = nn.Sequential(net)
    holder.generator = torch.Generator()  # cannot be copied
    model = {"function": lambda x: net(x), "method": net.forward, "uncopyable": holder}[kind]
    masks = _Masks()
    with searching(model, x, compile=masks.backend) as search:
        logits, grad = input_gradient(search.forward, x, y)
    logits64, grad64 = in_float64(net, x, y)
    assert relative(logits, logits64) < 1e-5 and relative(grad, grad64) < 1e-5
    assert set(masks.masks) == {(True, False, False)}


@pytest.mark.parametrize(
    ("make", "precision"), [(normalized_conv, "bf16"), (one_conv, "fp32")], ids=_name
)
def test_tensors_and_process_are_left_as_they_were(make, precision):
    model, x = make(), images(20)
    state = trace(model)
    config = torch._dynamo.config.save_config()
    process = (
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.is_grad_enabled(),
        torch.are_deterministic_algorithms_enabled(),
        torch.get_float32_matmul_precision(),
        torch.is_autocast_enabled("cpu"),
        torch.is_autocast_cache_enabled(),
        torch.backends.cudnn.flags,
        list(warnings.filters),
        torch.get_rng_state().tolist(),
    )
    with searching(model, x, compile="aot_eager", precision=precision) as search:
        for n in (20, 1):
            samples = images(n).requires_grad_()
            with torch.enable_grad():
                search.forward(samples).sum().backward()
            # a mark that torch sets on what a backward pass keeps, which no guard looks at
            kept = "propagated" if torch.__version__ >= (2, 13) else "weak"
            assert set(vars(samples)) <= {f"_dynamo_{kept}_dynamic_indices"}
    assert not vars(x)
    assert trace(model) == state
    assert torch._dynamo.config.save_config() == config
    assert process == (
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.is_grad_enabled(),
        torch.are_deterministic_algorithms_enabled(),
        torch.get_float32_matmul_precision(),
        torch.is_autocast_enabled("cpu"),
        torch.is_autocast_cache_enabled(),
        torch.backends.cudnn.flags,
        list(warnings.filters),
        torch.get_rng_state().tolist(),
    )


@pytest.mark.skipif(not shutil.which("c++"), reason="needs a C++ compiler")
def test_the_default_backend_is_inductor():
    model = lively(
        nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)
        )
    )
    x, y = images(20), labels(images(20))
    with searching(model, x, compile=True, fold_batchnorm=True) as search:
        assert search.notes == ()
        logits, grad = input_gradient(search.forward, x, y)
    assert counters["inductor"]  # it was called
    logits64, grad64 = in_float64(model, x, y)
    assert relative(logits, logits64) < 1e-5 and relative(grad, grad64) < 1e-5
