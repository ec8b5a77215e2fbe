"""Frozen dataclasses of settings, read from what a TOML or JSON file holds."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from coverslip.errors import InvalidConfig

Settings = TypeVar("Settings")


def settings_of(cls: type[Settings], content: Mapping[str, Any]) -> Settings:
    """A dataclass whose fields all have defaults, with what `content` says otherwise.

    Lists become tuples, whole numbers floats where one is wanted, tables dataclasses. Raises
    InvalidConfig for an unknown name or a wrong type.
    """
    known = {f.name: f for f in fields(cls)}  # type: ignore[arg-type]
    found: dict[str, Any] = {}
    for name, value in content.items():
        if name not in known:
            raise InvalidConfig(f"no setting named {name!r}; known: {', '.join(sorted(known))}")
        field = known[name]
        default = field.default if field.default_factory is MISSING else field.default_factory()
        found[name] = _as(default, name, value)
    return cls(**found)


def settings_from_toml(cls: type[Settings], path: Path) -> Settings:
    """The file's settings. Raises InvalidConfig, which names the file: unreadable, an unknown name,
    a wrong type or value."""
    with toml_content(path) as content:
        return settings_of(cls, content)


@contextmanager
def toml_content(path: Path) -> Iterator[dict[str, Any]]:
    """What the file holds. Raises InvalidConfig, which names the file: unreadable, or what the
    block raised of it."""
    try:
        yield tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, InvalidConfig) as error:
        raise InvalidConfig(f"{path}: {error}") from None


def _as(default: Any, name: str, value: Any) -> Any:
    """`value` as the type of `default`."""
    if is_dataclass(default) and isinstance(value, Mapping):
        return settings_of(type(default), value)
    if isinstance(default, tuple) and isinstance(value, list | tuple):
        return tuple(value)
    if isinstance(default, float) and type(value) in (int, float):
        return float(value)
    if type(value) is not type(default):
        wanted = type(default).__name__.replace("tuple", "list")
        raise InvalidConfig(f"{name} must be {wanted}, got {value!r}")
    return value
