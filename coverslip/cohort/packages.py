"""Packages that only the extra `cohort` installs, imported where they are needed."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from coverslip.errors import MissingPackage


def package(name: str, what: str) -> Any:
    """The module `name`. Raises MissingPackage: `what` needs it."""
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name.partition(".")[0]:
            raise
        raise MissingPackage(what, name, "cohort") from None
