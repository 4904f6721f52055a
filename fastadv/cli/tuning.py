"""The command `tune`: which execution is the fastest for a model; needs typer and rich."""

from typing import Annotated, Any

import torch
import typer

from fastadv.attacks.automatic import tuning_table
from fastadv.cli import networks, options, sources
from fastadv.cli.mistakes import said_in_one_line
from fastadv.cli.user_error import UserError, said
from fastadv.evaluation.clean import device_of


def tune(
    model: options.Model = None,
    data: options.DataOrNone = None,
    weights: options.Weights = None,
    run: options.Run = None,
    device: options.Device = None,
    shape: Annotated[
        str | None, typer.Option(help="Instead: of one sample, as 3,32,32; noise in [0, 1].")
    ] = None,
    n: Annotated[int, typer.Option("--n", min=1, help="Samples to measure at.")] = 64,
    seconds: Annotated[float, typer.Option(help="To measure, at most.")] = 10.0,
    precisions: Annotated[
        str, typer.Option(help="To try, as fp32,bf16: fp16 on a GPU only.")
    ] = "fp32",
    json: Annotated[bool, typer.Option("--json", help="Print JSON, times in seconds.")] = False,
    format: options.Format = "auto",
    split: options.Split = "test",
) -> None:
    """Measure the batch size, layout and precision that attack a model fastest, here and now.

    The last line is an Execution to paste; `fastadv evaluate --execution auto` measures by itself.
    """
    with said_in_one_line(kept="nothing is kept, and this begins again:"):
        x = _samples(data, shape, n, format, split)
        net = networks.load_network(model, weights, run, device).model
        where = device_of(net)
        x = x if where is None else x.to(where)
        networks.try_out(net, x[:1])
        words: Any = tuple(precisions.split(","))  # from the shell: tune says which there are
        try:
            table = tuning_table(net, x, seconds=seconds, precisions=words)
        except (ValueError, TypeError):
            raise  # they name what is wrong
        except Exception as error:  # whatever the user's model raises on the user's data
            raise UserError(said(error)) from error
    print(table.to_json() if json else table)


def _samples(data: str | None, shape: str | None, n: int, kind: str, split: str) -> torch.Tensor:
    if (data is None) == (shape is None):
        raise UserError("give --data, or --shape of one sample, as 3,32,32: one of them")
    if data is not None:
        x, _ = sources.load_data(data, kind, split, None)
        return x[:n]
    assert shape is not None
    try:
        sizes = [int(part) for part in shape.split(",")]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1:
        raise UserError(f"--shape must be positive integers, as 3,32,32; got {shape!r}")
    return torch.rand(n, *sizes, generator=torch.Generator().manual_seed(0))
