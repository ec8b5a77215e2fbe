"""The command line: parse, call one function, show progress.

A command is one file in this folder, with a function of the file's own name that Typer can read:
`cli/info.py` holds `def info(...)` and is `coverslip info`; its docstring is its help. A Typer of
that name is a command of commands, such as `coverslip train`. Files without either are no
commands. A command imports what is heavy inside its function, raises CoverslipError for trouble
with the user's data, and `typer.Exit(1)` where only a part went wrong.

Exit codes: 0 all done, 1 something failed and was reported, 2 the command line means nothing; of
a run that is told to stop 130 (SIGINT) or 143 (SIGTERM).
"""

from __future__ import annotations

import os
import pkgutil
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated

import typer

from coverslip import __version__
from coverslip.cli.stopping import Stopped
from coverslip.errors import CoverslipError, InvalidConfig, printable


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code.

    argv   the arguments after the program's name; this process's by default

    `--debug` counts anywhere on the line.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    own, separator, rest = _partition(arguments, "--")
    debug = "--debug" in own
    own = [argument for argument in own if argument != "--debug"]
    arguments = ["--debug"] * debug + own + separator + rest
    _print_anything()
    try:
        typer.main.get_command(_program(own))(arguments, prog_name="coverslip")
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 1 if ended.code else 0
    except Stopped as stopped:
        _report(f"{stopped}\n  what is on disk stays: the same command goes on from there", debug)
        return stopped.code
    except InvalidConfig as error:
        _report(str(error), debug)
        return 2
    except CoverslipError as error:
        _report(str(error), debug)
    except OSError as error:
        name = f"{printable(os.fsdecode(error.filename))}: " if error.filename else ""
        _report(f"{name}{error.strerror or error}", debug)
    except Exception as error:
        _report(
            f"unexpected {type(error).__name__}: {printable(str(error))}\n"
            "  this is a fault of the engine; --debug shows where",
            debug,
        )
    return 1


def debugging(context: typer.Context) -> bool:
    """Whether `--debug` was given, for a command that passes it on."""
    return bool(context.find_root().params.get("debug"))


def _partition(arguments: list[str], mark: str) -> tuple[list[str], list[str], list[str]]:
    if mark not in arguments:
        return arguments, [], []
    at = arguments.index(mark)
    return arguments[:at], [mark], arguments[at + 1 :]


def _program(arguments: Sequence[str]) -> typer.Typer:
    """The command asked for, or all of them where none is (for `--help` and near misses)."""
    app = typer.Typer(
        name="coverslip",
        add_completion=False,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_coverslip)
    modules = {m.name.replace("_", "-"): m.name for m in pkgutil.iter_modules(__path__)}
    asked = next((argument for argument in arguments if not argument.startswith("-")), "")
    for name in [asked] if asked in modules else sorted(modules):
        module = import_module(f"{__name__}.{modules[name]}")
        command = getattr(module, modules[name], None)
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name)
        elif callable(command):
            app.command(name)(command)
    return app


def _show_version(asked: bool) -> None:
    if asked:
        print(f"coverslip {__version__}")
        raise typer.Exit


def _coverslip(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of what goes wrong.")
    ] = False,
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", is_eager=True, callback=_show_version),
    ] = False,
) -> None:
    """Whole slides in; tiles, embeddings, nuclei and QuPath files out."""


def _report(message: str, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    print(f"coverslip: {message}", file=sys.stderr)


def _print_anything() -> None:
    """A terminal that lacks a character gets an escape in its place, not an exception."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
