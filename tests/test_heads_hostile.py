"""Heads from strangers: what a file names is not called unless it is a network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from coverslip.errors import InvalidConfig
from coverslip.heads.recipe import HeadRecipe, head_content, load_head
from coverslip.heads.token_decoder import encoder_of


@pytest.mark.parametrize("architecture", ["os:mkdir", "absent.module:Net", "os:", ":mkdir"])
def test_a_head_calls_no_function(tmp_path: Path, architecture: str) -> None:
    trace = tmp_path / "called"
    recipe = HeadRecipe("x", "nuclei", architecture, {"path": str(trace)})
    (tmp_path / "x.safetensors").write_bytes(head_content(recipe, {"w": np.zeros(1, np.float32)}))
    with pytest.raises(InvalidConfig, match="architecture"):
        load_head(tmp_path / "x.safetensors", "cpu")
    assert not trace.exists()


def test_an_encoder_within_a_head_calls_no_function(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="is no network"):
        encoder_of("os:mkdir", {"path": str(tmp_path / "called")})
    assert not (tmp_path / "called").exists()
