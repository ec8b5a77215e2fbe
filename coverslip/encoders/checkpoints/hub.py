"""Where a recipe's weights are: a file, a folder of files, or the model hub with the user's token.

A folder is searched in two layouts: `<encoder>.safetensors`, and `<repository>/<file>` as the hub
has it, so that a mirror of the hub can be carried to a machine without one.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from coverslip.encoders.registry import EncoderSpec, encoder_names, encoder_spec
from coverslip.errors import MissingWeights

FILES = ("model.safetensors", "pytorch_model.bin")
"""As the hub's repositories name their checkpoints, where a recipe names none."""
SUFFIXES = (".safetensors", ".pth", ".bin")


class Published(Protocol):
    """A record of published weights: a tile encoder's or a slide encoder's."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def weights_flag(self) -> str: ...
    @property
    def architecture(self) -> str: ...
    @property
    def weights(self) -> str: ...
    @property
    def hub(self) -> str: ...
    @property
    def revision(self) -> str: ...
    @property
    def file(self) -> str: ...
    @property
    def gated(self) -> bool: ...


def local_checkpoint(spec: Published, weights: str | Path) -> Path:
    """`weights` itself, or what a folder of that name holds for the recipe.

    Raises MissingWeights, which says how the file would have to be called.
    """
    path = Path(weights)
    if not path.is_dir():
        return path
    stems = [spec.name, *_same_checkpoint(spec)]
    names = [f"{stem}{suffix}" for stem in stems for suffix in SUFFIXES]
    if spec.hub:
        names += [f"{spec.hub}/{file}" for file in _files(spec)]
    for name in names:
        if (path / name).is_file():
            return path / name
    looked = [names[0], *([names[-len(_files(spec))]] if spec.hub else names[1:2])]
    raise MissingWeights(f"{path}: holds no weights of {spec.name}; looked for {', '.join(looked)}")


def checkpoint_from_hub(spec: Published, folder: Path | None = None) -> Path:
    """The recipe's checkpoint, at its revision, from the hub or from what was taken from it before.

    folder   put it there, under the repository's name, instead of into the hub's own cache

    Raises MissingWeights where the hub does not give it, and says what to put where.
    """
    repository, reasons = _repository(spec), []
    for file in _files(spec):
        try:
            return _downloaded(spec, repository, file, folder)
        except MissingWeights:
            raise
        except Exception as error:  # the hub client raises a zoo of network errors
            reasons.append(error)
    raise not_given(spec, reasons[0]) from reasons[0]


def fetch_weights(spec: EncoderSpec, folder: Path) -> Path:
    """Put the recipe's checkpoint into `folder`, where `--weights FOLDER` finds it; its path.

    The file is the hub's own, under its repository's name; where a recipe uses a part of a larger
    model, that part alone, as `<name>.safetensors`; where the network is code, all of the
    repository. Raises MissingWeights, also for a file that is not the one the recipe was written
    for.
    """
    if not spec.weights:
        raise without_hub(spec)
    if spec.weights == "package":
        raise MissingWeights(f"{spec.name}: its weights come with a package; nothing to fetch")
    if spec.weights == "remote-code":
        return _repository_from_hub(spec, folder)
    if spec.prefix:
        return _part_of_a_larger_model(spec, folder)
    path = checkpoint_from_hub(spec, folder)
    if problem := _another_file(spec, path):
        path.unlink()
        raise MissingWeights(f"{problem}\n  the file was removed; fetch it again")
    if spec.base:
        fetch_weights(encoder_spec(spec.base), folder)
    return path


def check_published(spec: EncoderSpec, path: Path) -> None:
    """Raises MissingWeights for a file that is not the one the recipe was written for."""
    if problem := _another_file(spec, path):
        raise MissingWeights(
            f"{problem}\n  it may be a newer one, or another encoder's; "
            "coverslip models fetch gets the published file"
        )


def _another_file(spec: EncoderSpec, path: Path) -> str:
    from coverslip.encoders.checkpoints.weights import file_sha256

    if not path.is_file():
        raise MissingWeights(f"{path}: no such file; --weights names a local checkpoint")
    if not spec.sha256 or (found := file_sha256(path)) == spec.sha256:
        return ""
    return f"{path}: not the published weights of {spec.name}: sha256 {found}, not {spec.sha256}"


def _files(spec: Published) -> tuple[str, ...]:
    return (spec.file,) if spec.file else FILES


def _same_checkpoint(spec: Published) -> list[str]:
    """Other encoders that read the same file, as `virchow2` and `virchow2-cls` do."""
    if not isinstance(spec, EncoderSpec) or not spec.hub or spec.prefix:
        return []
    others = [encoder_spec(name) for name in encoder_names() if name != spec.name]
    return [o.name for o in others if (o.hub, o.file, o.base) == (spec.hub, spec.file, spec.base)]


def _repository(spec: Published) -> str:
    """On the hub: the recipe's own, or the one from which timm takes the architecture's weights."""
    if not spec.weights:
        raise without_hub(spec)
    if spec.hub:
        return spec.hub
    import timm

    if ":" not in spec.architecture:
        config = timm.get_pretrained_cfg(spec.architecture, allow_unregistered=True)
        if config is not None and config.hf_hub_id:
            return str(config.hf_hub_id)
    raise without_hub(spec)


def _downloaded(spec: Published, repository: str, file: str, folder: Path | None) -> Path:
    """One file of the repository; with an index, the files it names that hold the recipe's part."""
    from huggingface_hub import hf_hub_download

    from coverslip.encoders.checkpoints.weights import INDEX, shards

    where: dict[str, Any] = {"revision": spec.revision or None}
    if folder is not None:
        where["local_dir"] = folder / repository
    with _no_empty_folder(where.get("local_dir")):
        fetched: str = hf_hub_download(repository, file, **where)  # nosec B615
        path = Path(fetched)
        if file.endswith(INDEX):
            for name in shards(path, spec.prefix if isinstance(spec, EncoderSpec) else ""):
                hf_hub_download(repository, name, **where)  # nosec B615
    return path


@contextlib.contextmanager
def _no_empty_folder(folder: Path | None) -> Iterator[None]:
    """A download that brought nothing leaves none; half a file stays, to be continued."""
    fresh = [p for p in (folder, *folder.parents) if not p.exists()] if folder else []
    try:
        yield
    except Exception:
        if folder and fresh and not any(folder.rglob("*.incomplete")):
            shutil.rmtree(folder, ignore_errors=True)
            with contextlib.suppress(OSError):  # another repository's weights came meanwhile
                for parent in fresh[1:]:
                    parent.rmdir()
        raise


def _part_of_a_larger_model(spec: EncoderSpec, folder: Path) -> Path:
    from safetensors.torch import save_file

    from coverslip.durable import whole_file
    from coverslip.encoders.checkpoints.weights import read_weights

    state = read_weights(checkpoint_from_hub(spec), spec.prefix)
    path = folder / f"{spec.name}.safetensors"
    folder.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as aside:
        save_file({k: v.contiguous() for k, v in state.items()}, aside)
    return path


def _repository_from_hub(spec: EncoderSpec, folder: Path) -> Path:
    from huggingface_hub import snapshot_download

    path = folder / spec.hub
    try:
        with _no_empty_folder(path):
            snapshot_download(spec.hub, revision=spec.revision or None, local_dir=path)
    except Exception as error:  # the hub client raises a zoo of network errors
        raise not_given(spec, error) from error
    return path


def without_hub(spec: Published) -> MissingWeights:
    """For weights that no hub gives under a name that is known here."""
    where = f" (published at {spec.hub})" if spec.hub else ""
    file = f"{spec.file}, then pass it" if spec.file else "then pass them"
    return MissingWeights(
        f"{spec.kind} {spec.name}: its weights{where} have to be downloaded by hand\n"
        f"  {file}: {spec.weights_flag} FILE, or a folder that holds it as {spec.name}.pth"
    )


def not_given(spec: Published, reason: Exception) -> MissingWeights:
    """What to do where the hub gave nothing."""
    said = str(reason).strip().splitlines()
    asked = (
        f"  ask for access on the page of {spec.hub}, then: export HF_TOKEN=...\n"
        if spec.gated
        else ""
    )
    revision = f" at revision {spec.revision}" if spec.revision else ""
    source = (
        f"{_files(spec)[0]} of {spec.hub}{revision}"
        if spec.hub
        else f"timm's {spec.architecture!r}"
    )
    inside = f" or {spec.hub}/{_files(spec)[0]}" if spec.hub else ""
    ways = f"{spec.weights_flag} FILE, or a folder that holds {spec.name}.safetensors{inside}"
    if spec.weights == "remote-code":
        source = f"all files of {spec.hub}{revision}"
        ways = f"{spec.weights_flag} FOLDER, where FOLDER/{spec.hub} holds them"
    return MissingWeights(
        f"{spec.kind} {spec.name}: no weights here, and the hub did not give them "
        f"({said[0] if said else type(reason).__name__})\n"
        f"{asked}"
        f"  or download {source} elsewhere and pass it: {ways}"
    )
