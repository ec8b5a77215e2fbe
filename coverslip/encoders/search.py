"""Nearest vectors: an index of embeddings on disk, mosaics of slides, and how far two lie apart.

<folder>/
  index.json       {schema, kind, count, dim, shards, lists, probes, made_by {...},
                   parts [{name, hash, rows}]}
  vectors.npy      float32 [N, D], every row of unit length: inner products are cosines
  ivf-<n>.index    FAISS, kind "ivf" only: centroids of a shard of the rows, and their lists of row
                   numbers and 8-bit codes

Both kinds are read where they lie, through memory maps. FAISS would read a flat index whole, so
the vectors are a plain array that is handed to its exact search. The lists narrow a search to the
centroids nearest to the query; what they find is ranked again by the vectors themselves, so that a
similarity is the same number whichever kind found it.
"""

from __future__ import annotations

import contextlib
import math
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import orjson

from coverslip.durable import explained, flush_to_disk, replace_file
from coverslip.errors import RecipeMismatch, StoreError, StoreVersion

Vectors = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]
Kind = Literal["flat", "ivf"]
Metric = Literal["euclidean", "cosine", "hamming"]

SCHEMA = 1
SEED = 20
RECORD, VECTORS = "index.json", "vectors.npy"
FLAT_UP_TO = 500_000
"""Rows up to which the exact search answers within a fraction of a second (see benchmarks)."""
ROWS_PER_LIST = 40
"""Rows that train a centroid: FAISS warns below 39, and more only take longer."""
LEAST_PROBED, SHARE_PROBED = 16, 1 / 16
"""Lists that a query looks into: so many, or that share of them where it is more."""
CANDIDATES = 8
"""Rows that the codes hand on for each one asked for, to be ranked by the vectors."""
BLOCK_ROWS = 16_384
SHARD_BYTES = 256_000_000
"""Codes that are gathered in memory, lists and all, before they go to disk."""


@dataclass(frozen=True, slots=True)
class MadeBy:
    """What made the vectors. Those of two makers must not be compared.

    encoder           its name
    recipe_hash       of its recipe (`EncoderSpec.recipe_hash`)
    weights_sha256    of its checkpoint
    grid              name of the tile grid
    stain             how tiles were recoloured before they were embedded; "" where they were not
    """

    encoder: str
    recipe_hash: str
    weights_sha256: str
    grid: str
    stain: str = ""

    def require(self, other: MadeBy, what: str) -> None:
        """Raises RecipeMismatch naming the first difference, where `other`, which made `what`, is
        not the same."""
        for part in fields(self):
            mine, theirs = getattr(self, part.name), getattr(other, part.name)
            if mine != theirs:
                word = part.name.replace("_", " ")
                raise RecipeMismatch(
                    f"{what}: its {word} is {_shown(theirs)}, the index's is {_shown(mine)}\n"
                    "  embed with the encoder, weights, grid and stain that the index was made of"
                )


def _shown(value: str) -> str:
    return value[:16] or "none"


@dataclass(frozen=True, slots=True)
class Part:
    """Consecutive rows of one origin (a slide): its name, the hash of what they are, how many."""

    name: str
    hash: str
    rows: int


@dataclass(frozen=True, slots=True)
class IndexRecord:
    """What an index says of itself.

    kind             "flat" (exact) or "ivf" (lists of 8-bit codes)
    count, dim       rows, and numbers in each
    shards           of kind "ivf": files of lists, with the rows in equal parts; 0 for "flat"
    lists, probes    how many lists a shard has, and a query looks into
    made_by, parts   what made the rows, and where they came from, in their order
    """

    kind: Kind
    count: int
    dim: int
    shards: int
    lists: int
    probes: int
    made_by: MadeBy
    parts: tuple[Part, ...]

    @classmethod
    def of(cls, made_by: MadeBy, parts: Sequence[Part], dim: int, kind: Kind | None) -> IndexRecord:
        """With the kind (where none is asked for) and the lists that suit the number of rows."""
        count = sum(part.rows for part in parts)
        kind = kind or ("flat" if count <= FLAT_UP_TO else "ivf")
        shards = lists = 0
        if kind == "ivf":
            shards = max(1, math.ceil(count * (dim + 8) / SHARD_BYTES))
            lists = list_count(count // shards)
        probes = min(lists, max(LEAST_PROBED, math.ceil(lists * SHARE_PROBED)))
        return cls(kind, count, dim, shards, lists, probes, made_by, tuple(parts))

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> IndexRecord:
        """Raises KeyError, TypeError or ValueError for what `to_dict` would not write."""
        values = {each.name: content[each.name] for each in fields(cls)}
        values["made_by"] = MadeBy(**content["made_by"])
        values["parts"] = tuple(Part(**part) for part in content["parts"])
        record = cls(**values)
        if record.kind not in ("flat", "ivf") or record.count != sum(p.rows for p in record.parts):
            raise ValueError("kind or count")
        return record

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)

    def shard(self, number: int) -> range:
        """The rows of a shard."""
        first, stop = (self.count * n // self.shards for n in (number, number + 1))
        return range(first, stop)


def list_count(count: int) -> int:
    """Lists for so many rows: sqrt(N), and no more than there are rows to train them."""
    return max(1, min(round(math.sqrt(count)), count // ROWS_PER_LIST))


class Found(NamedTuple):
    """The nearest rows of each query, best first; row -1 and similarity -inf where there are no
    more."""

    rows: Rows  # [Q, k]
    similarity: Vectors  # [Q, k], cosine


@dataclass(frozen=True)
class VectorIndex:
    """An index that was opened. Any number of threads and processes may search it.

    vectors   [N, D], mapped from disk
    """

    folder: Path
    record: IndexRecord
    vectors: Vectors
    _shards: tuple[Any, ...] = field(default=(), repr=False)

    @classmethod
    def open(cls, folder: Path) -> VectorIndex:
        """Raises StoreError (no index there, or a damaged one), StoreVersion."""
        record = read_record(folder)
        try:
            vectors = np.load(folder / VECTORS, mmap_mode="r", allow_pickle=False)
            if vectors.shape != (record.count, record.dim) or vectors.dtype != np.float32:
                raise ValueError(f"{VECTORS} is {vectors.dtype} {vectors.shape}")
            shards = tuple(_mapped_shard(folder, record, n) for n in range(record.shards))
        except (OSError, ValueError, RuntimeError) as error:
            raise StoreError(
                folder, f"its index cannot be read ({error})", "remove the folder: it is made anew"
            ) from None
        return cls(folder, record, vectors, shards)

    def search(
        self,
        queries: Vectors,
        k: int,
        *,
        leaving_out: Rows | None = None,
        probes: int | None = None,
    ) -> Found:
        """The k rows most similar to each of `queries` [Q, D], which may be of any length.

        leaving_out   rows that are not to be found
        probes        lists to look into in each shard, of kind "ivf"; the record's where None

        Raises ValueError for queries of another dimension.
        """
        if not self._shards:
            return self.exact(queries, k, leaving_out=leaving_out)
        import faiss

        queries, selector = self._prepared(queries), _without(leaving_out)
        parameters = faiss.SearchParametersIVF()
        parameters.nprobe = probes or self.record.probes
        if selector is not None:
            parameters.sel = selector
        wanted = min(CANDIDATES * k, self.record.count)
        found = [shard.search(queries, wanted, params=parameters)[1] for shard in self._shards]
        return self._ranked(queries, np.concatenate(found, axis=1), k)

    def exact(self, queries: Vectors, k: int, *, leaving_out: Rows | None = None) -> Found:
        """As `search`, over every row, whatever the kind."""
        import faiss

        queries, selector = self._prepared(queries), _without(leaving_out)
        wanted = min(k, self.record.count)
        similarity = np.empty((len(queries), wanted), np.float32)
        rows = np.empty((len(queries), wanted), np.int64)
        count, dim = self.vectors.shape
        query, vector, value, row = (
            faiss.swig_ptr(array) for array in (queries, self.vectors, similarity, rows)
        )
        nearest: Any = faiss.knn_inner_product  # its stub has arrays where it takes pointers
        nearest(query, vector, dim, len(queries), count, wanted, value, row, selector)
        return self._ranked(queries, rows, k)

    def _prepared(self, queries: Vectors) -> Vectors:
        if queries.ndim != 2 or queries.shape[1] != self.record.dim:
            raise ValueError(f"queries must be [Q, {self.record.dim}], got {queries.shape}")
        return unit(queries)

    def _ranked(self, queries: Vectors, candidates: Rows, k: int) -> Found:
        """The k best of the candidates by their vectors; equals in the order of their rows."""
        rows = np.full((len(queries), k), -1, np.int64)
        similarity = np.full((len(queries), k), -np.inf, np.float32)
        for i, (query, found) in enumerate(zip(queries, candidates, strict=True)):
            found = np.sort(found[found >= 0])
            # one sum for each row, in an order that depends on nothing but the dimension
            cosine = (self.vectors[found].astype(np.float64) * query).sum(axis=1)
            best = np.argsort(-cosine, kind="stable")[:k]
            rows[i, : len(best)], similarity[i, : len(best)] = found[best], cosine[best]
        return Found(rows, similarity)


def read_record(folder: Path) -> IndexRecord:
    """What the index in `folder` says of itself. Raises StoreError, StoreVersion."""
    try:
        content = orjson.loads((folder / RECORD).read_bytes())
        if content["schema"] != SCHEMA:
            raise StoreVersion(
                folder,
                f"its index has schema {content['schema']}, this engine knows {SCHEMA}",
                "remove the folder: the index is made anew",
            )
        return IndexRecord.from_dict(content)
    except FileNotFoundError:
        raise StoreError(folder, f"is no index: it has no {RECORD}") from None
    except (OSError, orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise StoreError(
            folder, f"its {RECORD} cannot be read ({error!r})", "remove the folder: it is made anew"
        ) from None


def build_index(
    folder: Path,
    blocks: Iterable[Vectors],
    made_by: MadeBy,
    parts: Sequence[Part],
    *,
    dim: int,
    kind: Kind | None = None,
) -> VectorIndex:
    """Write the index of a stream of vectors to `folder`, whole or not at all, and open it.

    blocks   [n, dim] of any n and length of vector, in all as many rows as the parts have
    kind     "flat", or "ivf"; None takes what suits the number of rows

    Memory holds a block, and of kind "ivf" a shard's codes and the sample that trains it. The same
    stream gives the same bytes. What `folder` held is replaced. One process builds it at a time.
    Raises StoreError where the disk refuses, ValueError for vectors that are none.
    """
    record = IndexRecord.of(made_by, parts, dim, kind)
    with _whole_folder(folder) as aside:
        _write_vectors(aside / VECTORS, blocks, record)
        for number in range(record.shards):
            _write_shard(aside, record, number)
        content = orjson.dumps({"schema": SCHEMA, **record.to_dict()}, option=orjson.OPT_INDENT_2)
        replace_file(aside / RECORD, content)
    return VectorIndex.open(folder)


def recall(index: VectorIndex, queries: Vectors, k: int, *, probes: int | None = None) -> float:
    """Share of the k truly nearest rows of `queries` [Q, D] that `search` finds, 0 to 1."""
    true, found = index.exact(queries, k).rows, index.search(queries, k, probes=probes).rows
    wanted = true >= 0
    hits = sum(np.isin(a[b], c).sum() for a, b, c in zip(true, wanted, found, strict=True))
    return float(hits / max(wanted.sum(), 1))


def unit(vectors: npt.ArrayLike) -> Vectors:
    """Each row [..., D] divided by its length; a row of zeros stays. Raises ValueError for one that
    is not finite."""
    rows = np.ascontiguousarray(vectors, np.float32)
    length = np.linalg.norm(rows, axis=-1, keepdims=True)
    if not np.isfinite(length).all():
        raise ValueError("a vector holds numbers that are not finite")
    return np.asarray(rows / np.where(length > 0, length, 1), np.float32)


# ---------------------------------------------------------------- slides against slides


def mosaic(
    appearance: npt.NDArray[Any],
    positions: npt.NDArray[Any],
    *,
    share: float = 0.05,
    clusters: int = 9,
) -> Rows:
    """The few tiles that stand for a slide (Yottixel, Kalra et al. 2020), as ascending row numbers.

    appearance   [N, C] what tiles are grouped by: mean colours (the paper's are RGB histograms), or
                 embeddings
    positions    [N, 2] (x, y), in any unit
    share        of the tiles that is chosen
    clusters     groups by appearance; within each, `share` of its tiles are chosen, evenly over the
                 area it covers and at least one
    """
    if len(appearance) != len(positions):
        raise ValueError(f"{len(appearance)} appearances of {len(positions)} positions")
    if not 0 < share <= 1:
        raise ValueError(f"share must be above 0 and at most 1, got {share}")
    groups, _ = _clustered(appearance, clusters)
    chosen = [
        members[_spread(positions[members], max(1, round(share * len(members))))]
        for members in (np.flatnonzero(groups == group) for group in np.unique(groups))
    ]
    return np.sort(np.concatenate(chosen)) if chosen else np.empty(0, np.int64)


def _spread(positions: npt.NDArray[Any], count: int) -> Rows:
    """About `count` of the positions, spread evenly: the middle one of each cluster of them."""
    groups, centres = _clustered(positions, count)
    away = ((positions - centres[groups]) ** 2).sum(axis=1)
    order = np.lexsort((away, groups))
    _, first = np.unique(groups[order], return_index=True)
    return order[first]


def _clustered(points: npt.NDArray[Any], count: int) -> tuple[Rows, npt.NDArray[np.float64]]:
    """k-means: the group of each of [N, C], and the groups' means; groups may be empty."""
    import faiss

    points = np.ascontiguousarray(points, np.float32)
    count = min(count, len(points))
    if count < 1:
        return np.empty(0, np.int64), np.empty((0, points.shape[1]))
    means = faiss.Kmeans(
        points.shape[1],
        count,
        niter=25,
        seed=SEED,
        min_points_per_centroid=1,
        max_points_per_centroid=max(256, -(-len(points) // count)),
    )
    means.train(points)
    _, groups = means.assign(points)
    return groups.astype(np.int64), np.asarray(means.centroids, np.float64)


def barcodes(vectors: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """[N, D] -> [N, ceil((D - 1) / 8)] packed bits: 1 where a number is below the one before it."""
    return np.packbits(np.diff(vectors, axis=1) < 0, axis=1)


def distances(
    query: npt.NDArray[Any], candidate: npt.NDArray[Any], metric: Metric
) -> npt.NDArray[np.float64]:
    """[Q, D] and [C, D] -> [Q, C].

    metric   "euclidean"; "cosine" (1 - cosine); "hamming" (bits in which barcodes differ)
    """
    if metric == "hamming":
        codes, others = barcodes(query), barcodes(candidate)
        differing = [np.bitwise_count(code ^ others).sum(axis=1, dtype=np.int64) for code in codes]
        return np.array(differing, np.float64).reshape(len(query), len(candidate))
    if metric == "cosine":
        return np.asarray(1 - unit(query).astype(np.float64) @ unit(candidate).T.astype(np.float64))
    if metric != "euclidean":
        raise ValueError(f"metric must be euclidean, cosine or hamming, got {metric!r}")
    a, b = np.asarray(query, np.float64), np.asarray(candidate, np.float64)
    squared = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2 * a @ b.T
    return np.asarray(np.sqrt(np.maximum(squared, 0)))


def median_of_minimum(between: npt.NDArray[np.float64]) -> float:
    """How far a slide lies from another: over the query's mosaic the median of what separates a
    tile from the nearest tile of the candidate's.

    between   [Q, C] distances, at least one; not symmetric: the query's tiles are the rows
    """
    return float(np.median(between.min(axis=1)))


# ---------------------------------------------------------------- on disk


def _write_vectors(path: Path, blocks: Iterable[Vectors], record: IndexRecord) -> None:
    written = 0
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(
            file,
            {"descr": "<f4", "fortran_order": False, "shape": (record.count, record.dim)},
        )
        for block in blocks:
            if block.ndim != 2 or block.shape[1] != record.dim:
                raise ValueError(f"a block must be [n, {record.dim}], got {block.shape}")
            file.write(unit(block).astype("<f4", copy=False).data)
            written += len(block)
    if written != record.count:
        raise ValueError(f"{written} vectors came, the parts have {record.count}")


def _write_shard(folder: Path, record: IndexRecord, number: int) -> None:
    """Train centroids on a sample of the shard's rows, and sort their codes into lists."""
    import faiss

    vectors, shard = np.load(folder / VECTORS, mmap_mode="r"), record.shard(number)
    index = faiss.IndexIVFScalarQuantizer(
        faiss.IndexFlatIP(record.dim),
        record.dim,
        record.lists,
        faiss.ScalarQuantizer.QT_8bit,
        faiss.METRIC_INNER_PRODUCT,
    )
    index.cp.seed, index.cp.min_points_per_centroid = SEED, 1
    size = min(len(shard), max(ROWS_PER_LIST * record.lists, 1024))
    sample = np.random.default_rng(SEED).choice(len(shard), size, replace=False)
    index.train(vectors[shard.start + np.sort(sample)])
    for first in range(shard.start, shard.stop, BLOCK_ROWS):
        rows = np.arange(first, min(first + BLOCK_ROWS, shard.stop))
        index.add_with_ids(vectors[first : first + len(rows)], rows)
    try:
        faiss.write_index(index, str(_shard_path(folder, number)))
    except RuntimeError as error:
        raise StoreError(folder, f"cannot be written: {error}", "free space on that disk") from None


def _mapped_shard(folder: Path, record: IndexRecord, number: int) -> Any:
    import faiss

    flags = faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY
    shard = faiss.read_index(str(_shard_path(folder, number)), flags)
    if (shard.ntotal, shard.d) != (len(record.shard(number)), record.dim):
        raise ValueError(f"{_shard_path(folder, number).name} holds {shard.ntotal} of {shard.d}")
    return shard


def _shard_path(folder: Path, number: int) -> Path:
    return folder / f"ivf-{number}.index"


def _without(rows: Rows | None) -> Any:
    """FAISS's selector of all rows but these; None for all."""
    if rows is None or not len(rows):
        return None
    import faiss

    return faiss.IDSelectorNot(faiss.IDSelectorBatch(np.ascontiguousarray(rows, np.int64)))


@contextlib.contextmanager
def _whole_folder(path: Path) -> Iterator[Path]:
    """A folder to write into; it becomes `path` in one step when the block ends without error.

    Before that it goes by a hidden name, under which nobody looks for an index; what a killed
    process left there is removed by the next.
    """
    aside, old = (path.with_name(f".{path.name}.{state}") for state in ("partial", "removed"))
    with explained(path):
        for left in (aside, old):
            if left.exists():
                shutil.rmtree(left)
        aside.mkdir(parents=True)
        try:
            yield aside
            for file in aside.iterdir():
                flush_to_disk(file)
            flush_to_disk(aside)
            if path.exists():
                path.rename(old)
            aside.rename(path)
            flush_to_disk(path.parent)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
        if old.exists():
            shutil.rmtree(old)
