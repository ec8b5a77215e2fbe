"""What the documentation shows is true: commands run, the reader reads, the picture is drawn."""

from __future__ import annotations

import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import coverslip
from coverslip.cli import main
from coverslip.heads.instances import Nuclei
from coverslip.tiling.store import SlideStore

REPOSITORY = Path(coverslip.__file__).parent.parent
DOCS = REPOSITORY / "docs"
RUNS = re.compile(r"^<!-- runs(?:: \w+)? -->\n```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def making(name: str) -> ModuleType:
    """A module of those that make the site."""
    found = importlib.util.spec_from_file_location(name, DOCS / "making" / f"{name}.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def text_of_pages() -> str:
    return "\n".join(page.read_text(encoding="utf-8") for page in sorted(DOCS.rglob("*.md")))


def run_python(code: str, names: dict[str, Any]) -> None:
    exec(compile(code, "<docs>", "exec"), names)


@pytest.fixture(scope="module")
def tutorial(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder in which every marked block of the tutorial has run, in order."""
    folder = tmp_path_factory.mktemp("tutorial")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        blocks = RUNS.findall((DOCS / "tutorial.md").read_text(encoding="utf-8"))
        assert len(blocks) > 8
        for language, code in blocks:
            if language == "python":
                run_python(code, {})
                continue
            assert language == "sh"
            for line in code.replace("\\\n", " ").strip().splitlines():
                program, *arguments = shlex.split(line)
                assert program == "coverslip"
                assert main(arguments) == 0, line
        yield folder


@pytest.mark.slow
def test_the_tutorial_leaves_what_it_says(tutorial: Path) -> None:
    for path in (
        "first/report.html",
        "first/geojson/CMU-1-Small-Region.nuclei_watershed.geojson.gz",
        "density/density.safetensors",
        "cohort.csv",
        "study/report.html",
        "cohort/study.csv",
    ):
        assert (tutorial / path).stat().st_size > 0, path
    assert len((tutorial / "cohort.csv").read_text().splitlines()) == 13
    assert len(list(tutorial.glob("cohort/*.zarr"))) == 12


@pytest.mark.slow
def test_the_reader_in_the_specification_reads_a_store(
    tutorial: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ((language, code),) = RUNS.findall((DOCS / "store.md").read_text(encoding="utf-8"))
    assert language == "python"
    assert "coverslip." not in code.replace('"coverslip"', "")  # without this package
    monkeypatch.chdir(tutorial)
    found: dict[str, Any] = {}
    run_python(code, found)
    store = SlideStore.open("first/CMU-1-Small-Region.zarr")
    assert found["slide"] == store.slide
    assert sorted(found["stages"]) == store.stages()
    stored = store.group("features/efficientnet-lite0@128px_1mpp")["features"][:]
    assert np.array_equal(found["features"], stored)
    nuclei = Nuclei.from_columns(store.group("nuclei/watershed"))
    assert np.array_equal(found["first_nucleus"], nuclei.polygon[: nuclei.polygon_offset[1]])
    # and it tells a store that is not what it says
    root = Path("first/CMU-1-Small-Region.zarr/zarr.json")
    sound = root.read_text(encoding="utf-8")
    try:
        root.write_text(sound.replace('"on_bad_tile": "fail"', '"on_bad_tile": "blank"', 1))
        with pytest.raises(ValueError, match="is not what its record says"):
            found["read_store"]("first/CMU-1-Small-Region.zarr")
    finally:
        root.write_text(sound, encoding="utf-8")


@pytest.mark.slow
def test_the_specification_names_every_array_and_attribute(tutorial: Path) -> None:
    text = (DOCS / "store.md").read_text(encoding="utf-8")
    for path in sorted(tutorial.glob("*/*.zarr")):
        store = SlideStore.open(path)
        for fact in store.slide:
            assert f"`{fact}`" in text, fact
        for stage in store.stages():
            kind = stage.partition("/")[0]
            assert re.search(rf"^### .*\b{kind}\b", text, re.MULTILINE), kind
            group = store.group(stage)
            for name in [*dict(group.arrays()), *group.attrs]:
                assert f"`{name}`" in text, f"{name} of {stage}"


def test_every_command_has_a_place() -> None:
    text = text_of_pages()
    for name, _ in making("pages").every_command():
        assert f"coverslip {name}" in text, f"no page says what coverslip {name} is for"


def test_every_command_and_public_name_is_told() -> None:
    pages = making("pages")
    told = pages.commands()
    for name, command in pages.every_command():
        assert f"## coverslip {name}\n" in told
        assert command.help, f"coverslip {name} has no help"
    assert "`reading.py`" in pages.scripts()
    assert "](nuclei.jpg)" in pages.measured()
    listed = pages.public_names()
    for name in set(coverslip.__all__) - {"__version__"}:
        assert f"[`{name}`]" in listed


def test_the_reference_holds_every_public_name() -> None:
    definition = making("pages").definition
    told = "\n".join(p.read_text(encoding="utf-8") for p in (DOCS / "reference").glob("*.md"))
    modules = re.findall(r"^::: ([\w.]+)$", told, re.MULTILINE)
    for module in modules:
        assert (REPOSITORY / f"{module.replace('.', '/')}.py").is_file(), module
    for name, room in coverslip._home.items():
        module, sentence = definition(f"coverslip.{room}", name)
        assert module in modules, f"{name}: no page of docs/reference holds {module}"
        assert sentence, f"{name} has no docstring"


def test_options_that_pages_name_exist() -> None:
    """Every flag in a shell block belongs to the command on its line."""
    pages = making("pages")
    known = {
        name: {o for p in command.params for o in [*p.opts, *p.secondary_opts]} | {"--help"}
        for name, command in pages.every_command()
    }
    seen = 0
    for page in sorted(DOCS.rglob("*.md")):
        for block in re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
            for line in block.splitlines():
                words = line.partition("#")[0].split()
                if words[:1] != ["coverslip"]:
                    continue
                name = " ".join(words[1:3]) if " ".join(words[1:3]) in known else words[1]
                assert name in known, f"{page.name}: {line}"
                for word in words:
                    if re.fullmatch(r"--?[a-z][a-z-]*", word):
                        assert word in known[name], f"{page.name}: {name} has no {word}"
                        seen += 1
    assert seen > 50


def test_the_picture_is_that_of_the_imports_as_they_are() -> None:
    """Redraw it by python docs/making/architecture.py."""
    architecture = making("architecture")
    edges, modules = architecture.imports()
    floors = {room: n for n, floor in enumerate(architecture.FLOORS) for room, _ in floor}
    assert all(floors[below] > floors[above] for above, below in edges)
    assert modules["wsi"] > 10
    drawn = (DOCS / "architecture.svg").read_text(encoding="utf-8")
    for above, below in edges:
        line = architecture._line(architecture.places()[above], architecture.places()[below], 1)
        curve = line.partition('"')[2].partition('"')[0]
        assert curve in drawn, f"{above} imports {below}, which is not drawn"


def test_legends_become_tables() -> None:
    pytest.importorskip("griffe")
    as_markdown = making("legends").as_markdown
    text = """A grid of <tiles>.

    tile, step   side and spacing, in px
    mpp          µm per pixel | exactly,
                 never guessed

Raises MissingMpp."""
    shown = as_markdown(text.replace("\n    ", "\n"))
    assert "| `tile, step` | side and spacing, in px |" in shown
    assert r"| `mpp` | µm per pixel \| exactly, never guessed |" in shown
    assert shown.startswith("A grid of &lt;tiles>.")
    assert shown.endswith("Raises MissingMpp.")
    assert as_markdown("A\n├── B    b").startswith("```text\n")
    assert as_markdown("found = f(1)\nprint(found)").startswith("```python\n")
    assert as_markdown("Raises StoreError, and so on (see there).").startswith("Raises")
    tree = "x.zarr/\n  zarr.json      the root\n    deeper/  more"
    assert as_markdown(tree).startswith("```text\n")


def test_every_page_is_in_the_navigation() -> None:
    listed = set(re.findall(r"[\w/-]+\.md", (REPOSITORY / "mkdocs.yml").read_text("utf-8")))
    pages = {page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")}
    assert pages == listed
