"""What no graph can hold is refused by name, and nothing else is."""

import pytest
import torch

from fastadv.graphs.unrecordable import Guard, Unrecordable

_X = torch.tensor([0.2, 0.7, 0.9])
_REFUSED = {
    r"\.item\(\), float\(tensor\)": [
        lambda: _X.sum().item(),
        lambda: float(_X[0]),
        lambda: 1 if _X.sum() > 0 else 0,
        lambda: range(int(_X[1])),
    ],
    "nonzero": [lambda: _X.nonzero(), lambda: torch.where(_X > 0.5)],
    "boolean indexing": [
        lambda: _X[_X > 0.5],
        lambda: _X.masked_select(_X > 0.5),
        lambda: _X.clone().index_put_((_X > 0.5,), torch.ones(2)),
    ],
    "unique": [lambda: _X.unique(), lambda: _X.unique_consecutive()],
    "torch.equal": [lambda: torch.equal(_X, _X)],
    "repeat_interleave": [lambda: _X.repeat_interleave(torch.tensor([1, 0, 2]))],
    "bincount": [lambda: torch.bincount(torch.tensor([1, 2]))],
    "a copy from cpu to meta": [
        lambda: _X.to("meta"),
        lambda: torch.empty(3, device="meta").copy_(_X),
    ],
}


@pytest.mark.parametrize("words", _REFUSED)
def test_what_waits_for_the_device_is_refused_by_name(words):
    for function in _REFUSED[words]:
        with pytest.raises(Unrecordable, match=f"{words}.*waits for the device"), Guard():
            function()


def test_what_a_graph_can_hold_passes():
    with Guard():
        x = _X.clone()
        x[x > 0.5] = 0.0  # a masked_fill
        wider = x.to(torch.float64)
        counts = _X.repeat_interleave(torch.tensor([1, 0, 2]), output_size=3)
        picked = _X[torch.tensor([2, 0])]
        torch.where(_X > 0.5, _X, 0.0).copy_(_X)
        _X.to("meta", non_blocking=True)
    assert wider.tolist()[1:] == [0.0, 0.0]
    assert torch.equal(counts, _X[[0, 2, 2]]) and torch.equal(picked, _X[[2, 0]])


def test_compiled_code_stays_compiled_inside():
    runs = []

    def backend(graph, inputs):
        return lambda *args: runs.append(1) or graph.forward(*args)

    compiled = torch.compile(lambda x: x.sin() + 1, backend=backend)
    with Guard():
        out = compiled(_X)
    assert torch.equal(out, _X.sin() + 1) and len(runs) == 1
