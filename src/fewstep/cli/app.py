"""The ``fewstep`` command. The names of commands are a contract with users' scripts."""

import errno
import io
import logging
import os
import signal
import sys
import warnings
from itertools import takewhile
from typing import Annotated, Any

import typer

from fewstep import __version__
from fewstep.cli.commands import (
    bench,
    cancel,
    check,
    diagnose,
    encode,
    evaluate,
    logs,
    measure,
    recipe,
    reference,
    report,
    status,
    sweep,
    sync,
    train,
)
from fewstep.cli.commands import list as listing
from fewstep.cli.options import BAD_INPUT, INTERRUPTED, TYPER
from fewstep.cli.views.console import data_meter, err, out
from fewstep.errors import UserError

UsageError: Any = typer.BadParameter.__base__  # Typer exports only its subclass
COMMANDS = {function.__name__.rstrip("_"): function for function in (
    train.train, sweep.sweep, sweep.retry, cancel.cancel, logs.logs, status.status,
    evaluate.evaluate, evaluate.sample, sync.sync, report.report, report.compare,
    diagnose.diagnose, encode.encode, listing.list_, check.check, evaluate.bias,
    reference.reference, measure.measure,
)}  # fmt: skip

app = typer.Typer(
    name="fewstep",
    help="Compare few-step generative objectives fairly, on one shared backbone.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    **TYPER,
)
for name, command in COMMANDS.items():
    app.command(name)(command)
app.add_typer(bench.app, name="bench")
app.add_typer(reference.extractor, name="extractor")
app.add_typer(recipe.app, name="recipe")


def main() -> None:
    """Entry point: runs the command; the user's errors become one line and exit code 2."""
    from fewstep.experiments.progress import listen

    for stream in (sys.stdout, sys.stderr):  # a terminal may lack the letters of a label
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    warnings.filterwarnings("default", ".* since fewstep", DeprecationWarning)
    warnings.showwarning = show_warning
    listen(data_meter())
    try:
        code = app(prog_name="fewstep", standalone_mode=False)
    except UserError as error:
        code = refuse(str(error))
    except UsageError as error:
        words = takewhile(str.isalpha, sys.argv[1:])  # the parser's own errors have no context
        command = error.ctx.command_path if error.ctx else " ".join(["fewstep", *words])
        if type(error).__name__ == "NoArgsIsHelpError":  # a group without a command
            error.show()
            sys.exit(BAD_INPUT)
        code = refuse(f"{error.format_message().rstrip('.')}: see {command} --help")
    except typer.Abort:  # Ctrl-C
        code = INTERRUPTED
    except OSError as error:
        if error.errno == errno.EPIPE and error.filename is None:  # fewstep ... | head
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = 128 + signal.SIGPIPE
        elif error.errno is None:  # not of the operating system
            raise
        else:
            where = "a file, or the network" if error.filename is None else error.filename
            refuse(f"{where}: {error.strerror}")
            code = 1  # no fault of the input
    sys.exit(code or 0)


def refuse(message: str) -> int:
    """Print one line about bad input; returns the exit code."""
    err.print("error: ", style="bold red", end="")
    err.print(" ".join(message.split()))
    return BAD_INPUT


def show_warning(message: Any, category: type[Warning], *where: Any, **more: Any) -> None:
    """A warning in one line of stderr, without the place in the source."""
    err.print(f"warning: {' '.join(str(message).split())}")


def show_version(value: bool) -> None:
    """``fewstep --version``."""
    if value:
        out.print(f"fewstep {__version__}")
        raise typer.Exit


@app.callback()
def callback(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Compare few-step generative objectives fairly, on one shared backbone."""


if __name__ == "__main__":
    main()
