"""Square Attack runs on small networks, through the ops and through a textbook loop."""

from dataclasses import dataclass

import torch

from fastadv.kernels import slots as columns
from fastadv.ops.square import linf as square
from fastadv.ops.square import lp as square_lp
from fastadv.ops.square import start as square_start
from fastadv.ops.square import table as square_table

NAN = float("nan")
LINF_EPS = 0.08


class Wavy:
    """(B, C, H, W) to (B, classes) logits, rugged enough to reject; each row apart, exactly."""

    def __init__(self, size, device, classes=4, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.weight = torch.randn(classes, size, generator=generator).double().to(device)

    def __call__(self, x):
        # one product a row, in float64: no bit depends on the batch
        rows = x.detach().contiguous().flatten(1).double()
        score = torch.stack([(rows * w).cumsum(1)[:, -1] for w in self.weight], 1)
        return (score / rows.shape[1] ** 0.5 + 0.3 * torch.sin(5 * score)).float()


def margin(logits, labels):
    """(loss clipped at 0, prediction), as the loss head of the attack."""
    own = logits.gather(1, labels[:, None])
    others = logits.scatter(1, labels[:, None], -float("inf"))
    return (others.amax(1) - own[:, 0]).clamp(max=0), logits.argmax(1)


def images(device, *shape, dtype=torch.float32, seed=0, memory_format=torch.contiguous_format):
    x = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    return x.to(device, dtype).contiguous(memory_format=memory_format)


@dataclass
class Run:
    """The state of an attack, as an engine keeps it."""

    x: torch.Tensor
    labels: torch.Tensor
    start: torch.Tensor
    table: square_table.SquareTable
    eps: object = 0.1
    width: int = 1
    norm: str = "linf"
    seed: int = 0
    sample_ids: torch.Tensor | None = None
    restarts: torch.Tensor | None = None
    bounds: tuple = (0.0, 1.0)

    def __post_init__(self):
        batch, device = len(self.x), self.x.device
        zeros = torch.zeros(batch, dtype=torch.int32, device=device)
        self.x_best = self.start.clone()
        repeated = self.start.repeat_interleave(self.width, 0)
        self.x_new = (
            torch.empty_like(repeated, memory_format=torch.preserve_format)
            .contiguous(memory_format=self.memory_format())
            .copy_(repeated)
        )
        self.best_loss = torch.full((batch,), -float("inf"), device=device)
        count = self.table.queries
        self.queries = torch.full((batch, self.width), count, dtype=torch.int32, device=device)
        self.queries[:, 0] = -1
        self.wasted = zeros.clone()
        self.slots = torch.zeros(batch, columns.WIDTH, dtype=torch.int32, device=device)
        self.slots[:, columns.SUCCESS_STEP] = -1
        self.slots[:, columns.ACTIVE] = 1
        if self.sample_ids is None:
            self.sample_ids = torch.arange(batch, device=device)
        if self.restarts is None:
            self.restarts = zeros.clone()
        self.evaluated = 0

    def memory_format(self):
        last = not self.start.is_contiguous()
        return torch.channels_last if last else torch.contiguous_format

    def step(self, loss, prediction):
        state = dict(
            loss=loss,
            prediction=prediction,
            labels=self.labels,
            best_loss=self.best_loss,
            queries=self.queries,
            wasted=self.wasted,
            slots=self.slots,
            restarts=self.restarts,
            table=self.table,
            eps=self.eps,
            bounds=self.bounds,
        )
        images = self.x_new, self.x_best, self.x
        if self.norm == "linf":
            square.square_linf_(*images, **state)
        else:
            step = square_lp.square_l2_ if self.norm == "l2" else square_lp.square_l1_
            step(*images, **state, sample_ids=self.sample_ids, seed=self.seed)

    def evaluate_and_step(self, network):
        active = self.slots[:, columns.ACTIVE] != 0
        self.evaluated += int(((self.queries < self.table.queries) & active[:, None]).sum())
        self.step(*margin(network(self.x_new), self.labels.repeat_interleave(self.width)))

    def finish(self, network):
        while self.slots[:, columns.ACTIVE].any():
            self.evaluate_and_step(network)
        return self

    def column(self, name):
        return self.slots[:, getattr(columns, name)].tolist()


def linf_problem(device, batch=3, shape=(3, 5, 7), queries=40, width=1, restarts=1, **options):
    memory_format = options.pop("memory_format", torch.contiguous_format)
    dtype = options.pop("dtype", torch.float32)
    network = Wavy(shape[0] * shape[1] * shape[2], device)
    x = images(device, batch, *shape, dtype=dtype, memory_format=memory_format)
    labels = network(x).argmax(1)
    table = square_table.square_table(
        queries, shape, norm="linf", seed=4, restarts=restarts, device=device
    )
    start = square_start.square_start(x, eps=LINF_EPS, norm="linf", seed=1)
    return network, Run(x, labels, start, table, eps=LINF_EPS, width=width, **options)


def textbook_linf(network, x, labels, start, table, eps, restart=0):
    """(x_best, best margin, success steps): every query of every image, one after the other."""
    best = start.clone()
    margins = torch.empty(len(x), device=x.device)
    success = []
    eps32 = torch.tensor(eps, dtype=torch.float32).to(x.device)
    for b in range(len(x)):
        image, label = x[b : b + 1].float(), labels[b : b + 1]
        current = best[b : b + 1].float()
        lowest, at = None, -1
        for query in range(-1, table.queries):
            new = current.clone()
            if query >= 0:
                row = restart * table.queries + query
                top, left, side = table.geometry[row].tolist()
                window = (..., slice(top, top + side), slice(left, left + side))
                sign = table.signs[row].float().view(1, -1, 1, 1)
                moved = new[window] + 2 * eps32 * sign
                moved = torch.max(moved, image[window] - eps32)
                new[window] = torch.min(moved, image[window] + eps32).clamp(0, 1)
            logits = network(new)
            loss, prediction = margin(logits, label)
            fooled = bool(prediction != label)
            if lowest is None or loss > lowest or fooled:
                lowest, current = loss, new
            if fooled:
                at = query + 1
                break
        best[b], margins[b] = current[0], lowest[0]
        success.append(at)
    return best, margins, success
