"""The command line in this process: arguments in; exit code, stdout and stderr out."""

import numpy as np
import pytest

pytest.importorskip("typer", reason="needs typer")
pytest.importorskip("rich", reason="needs rich")
from fastadv.cli import entry as cli


def arrays(path: str) -> dict[str, np.ndarray]:
    """The arrays of an .npz file, which is closed again."""
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def command(*more: str, data: str = "digits.npz", model: str = "digits", eps="1/10") -> list[str]:
    return [
        "attack",
        "--model",
        f"nets_of_cli_tests:{model}",
        "--data",
        data,
        "--eps",
        eps,
        "--out",
        "adv.npz",
        *more,
    ]


def evaluate_command(
    *more: str, model: str = "digits", eps: tuple[str, ...] = ("1/10",), data="digits.npz"
) -> list[str]:
    radii = [part for radius in eps for part in ("--eps", radius)]
    address = f"nets_of_evaluate_tests:{model}"
    return ["evaluate", "--model", address, "--data", data, *radii, *more]


def run(capsys, arguments) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    captured = capsys.readouterr()
    return end.value.code, captured.out, captured.err  # type: ignore[return-value]
