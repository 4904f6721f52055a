"""What a command says of mistakes and of Ctrl-C: one line each, in the words of the shell."""

import contextlib
import re
import shlex
import sys
import warnings
from collections.abc import Iterator
from contextvars import ContextVar

import typer

from fastadv.cli.user_error import UserError
from fastadv.diagnostics import AttackWarning

_command: ContextVar[tuple[str, ...]] = ContextVar("_command", default=())
# arguments of the library that errors begin with -> the option that gave them
_SAME = (
    *("attack", "batch_size", "batching", "budget", "checkpoint", "checkpoint_every", "cuda_graph"),
    *("dataset", "device", "ema", "epochs", "eps", "learning_rate", "loss", "method", "model"),
    *("norm", "on_collapse", "out", "precision", "precisions", "restarts", "seconds", "seed"),
    *("step_size", "steps", "target", "weights"),
)
_OPTIONS = {
    **{name: f"--{name.replace('_', '-')}" for name in _SAME},
    "root": "--data",
    "data": "--data",
    "images": "--data: images",
    "labels": "--data: labels",
    "queries": "--steps",
    "x": "--data: x",
    "y": "--data: y",
}
_FIRST_WORD = re.compile(
    r"^(?:fastadv\.\w+\([^)]*\): )?"
    r"(\w+)(=|: | must | is | does | has | \S+ (?:was|does|has|belongs) | \S+: )"
)


def set_command(arguments: list[str]) -> None:
    """The command line under way, for what is said when it is interrupted."""
    _command.set(tuple(arguments))


def was_given(option: str) -> bool:
    """Whether the command line under way has the option."""
    return any(word == option or word.startswith(f"{option}=") for word in _command.get())


def same_command(*more: str) -> str:
    """The command line under way, with `more` where it has not got that, to be pasted."""
    given = list(_command.get())
    return shlex.join(["fastadv", *given, *(word for word in more if word not in given)])


def in_words_of_the_shell(text: str) -> str:
    """An error of the library that begins with an argument, with the option in its place."""
    found = _FIRST_WORD.match(text)
    if found is None or found[1] not in _OPTIONS:
        return text
    separator = " " if found[2] == "=" else found[2]
    return f"{_OPTIONS[found[1]]}{separator}{text[found.end() :]}"


@contextlib.contextmanager
def said_in_one_line(*more: str, kept: str = "nothing is kept") -> Iterator[None]:
    """Mistakes: one line, exit code 2. Ctrl-C: what is kept (a note of the interrupt, else `kept`)
    and the command that goes on, with `more`; exit code 130. What attacks warn of is in reports."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", AttackWarning)
            yield
    except typer.Exit:  # a RuntimeError
        raise
    except (ValueError, TypeError, OSError, ModuleNotFoundError, RuntimeError) as error:
        raise UserError(in_words_of_the_shell(" ".join(str(error).split()))) from error
    except KeyboardInterrupt as interrupt:
        told = " ".join(getattr(interrupt, "__notes__", [f"interrupted: {kept}"]))
        print(f"fastadv: {told}\n  {same_command(*more)}", file=sys.stderr, flush=True)
        raise typer.Exit(130) from interrupt
