"""Options that several commands share, with the same words in the help of each."""

from pathlib import Path
from typing import Annotated

import typer

from fastadv.cli import choices

_DATA = (
    "digits; an npz or .pt file of images and labels; the folder of MNIST's or CIFAR-10's files; a "
    "folder of images, one folder a class; or module:function that returns a Dataset or (x, y)."
)

Model = Annotated[
    str | None, typer.Option(help="module:function that returns the model, as in nets:resnet.")
]
Weights = Annotated[
    Path | None, typer.Option(help="File for it: .safetensors, or .pt, loaded with weights_only.")
]
Run = Annotated[
    Path | None, typer.Option(help="Folder that fastadv train wrote, instead of --model.")
]
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda, cuda:1, ...; default: where the model is.")
]
DataOf = Annotated[str, typer.Option(help=_DATA)]
DataOrNone = Annotated[str | None, typer.Option(help=_DATA)]
Format = Annotated[str, typer.Option(help=f"Of --data: {', '.join(choices.FORMATS)}.")]
Split = Annotated[str, typer.Option(help="train or test, where --data has both.")]
First = Annotated[int | None, typer.Option("--n", help="The first n samples; default: all.")]
BatchSize = Annotated[
    int | None, typer.Option(min=1, help="Samples attacked at once; default: 128.")
]
Norm = Annotated[
    str | None, typer.Option(help="linf, l2, l1 or l0; default: that of --run, else linf.")
]
Steps = Annotated[int | None, typer.Option(help="Steps; default: the attack's own.")]
Budget = Annotated[
    int | None, typer.Option(help="Of minimum_norm: passes a sample; default: 1000.")
]
StepSize = Annotated[
    str | None, typer.Option(help="As --eps; default: the attack's own, in units of eps.")
]
Restarts = Annotated[
    int | None, typer.Option(help="Random starts a sample; default: the attack's own, mostly 1.")
]
Loss = Annotated[
    str | None,
    typer.Option(help="ce, margin, dlr, difference or kl; default: the attack's own, mostly ce."),
]
Seed = Annotated[int, typer.Option(help="Of all randomness.")]
_REPORT = "Report, .json, .md or .html; may be repeated."
Reports = Annotated[list[Path] | None, typer.Option("--report", "--out", help=_REPORT)]
ReportsToo = Annotated[list[Path] | None, typer.Option("--report", help=_REPORT)]  # --out is more
