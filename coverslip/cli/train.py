"""`coverslip train`: heads of your own.

A command is one file, as elsewhere: `cli/train_tiles.py` holds `def tiles(...)` and is
`coverslip train tiles`.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module

import typer

import coverslip.cli

PREFIX = "train_"

train = typer.Typer(no_args_is_help=True, help="Train heads of your own.")
for found in sorted(m.name for m in pkgutil.iter_modules(coverslip.cli.__path__)):
    if found.startswith(PREFIX):
        name = found.removeprefix(PREFIX)
        train.command(name)(getattr(import_module(f"coverslip.cli.{found}"), name))
