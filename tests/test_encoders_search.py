"""Searching vectors: exactness, recall, what is on disk, and distances worked out by hand."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from coverslip.encoders.search import (
    IndexRecord,
    MadeBy,
    Part,
    VectorIndex,
    barcodes,
    build_index,
    distances,
    list_count,
    median_of_minimum,
    mosaic,
    recall,
    unit,
)
from coverslip.errors import RecipeMismatch, StoreError, StoreVersion

MADE_BY = MadeBy("ours", "recipe", "weights", "256px_0.5mpp")


def clustered(rows: int, dim: int = 24, seed: int = 0) -> np.ndarray:
    """float32 [rows, dim] around 40 centres, of any length."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((40, dim))
    found = centres[rng.integers(0, 40, rows)] + 0.4 * rng.standard_normal((rows, dim))
    return (found * rng.uniform(0.5, 3, (rows, 1))).astype(np.float32)


def built(folder: Path, vectors: np.ndarray, kind: str, block: int = 100) -> VectorIndex:
    blocks = (vectors[i : i + block] for i in range(0, len(vectors), block))
    parts = [Part("a", "1", len(vectors) // 3), Part("b", "2", len(vectors) - len(vectors) // 3)]
    return build_index(folder, blocks, MADE_BY, parts, dim=vectors.shape[1], kind=kind)  # type: ignore[arg-type]


def brute_force(vectors: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and cosines by numpy, in double precision."""
    a, b = vectors.astype(np.float64), queries.astype(np.float64)
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    cosine = b @ a.T
    rows = np.argsort(-cosine, axis=1, kind="stable")[:, :k]
    return rows, np.take_along_axis(cosine, rows, axis=1)


# ---------------------------------------------------------------- finding


@pytest.mark.parametrize("queries", [1, 3, 50])
def test_flat_is_brute_force(tmp_path: Path, queries: int) -> None:
    vectors, asked = clustered(700), clustered(queries, seed=1)
    found = built(tmp_path / "index", vectors, "flat").search(asked, 9)
    rows, cosine = brute_force(vectors, asked, 9)
    np.testing.assert_array_equal(found.rows, rows)
    np.testing.assert_allclose(found.similarity, cosine, atol=2e-7)


def test_lists_that_are_all_probed_are_flat(tmp_path: Path) -> None:
    vectors, asked = clustered(4000), clustered(60, seed=1)
    flat = built(tmp_path / "flat", vectors, "flat").search(asked, 10)
    index = built(tmp_path / "ivf", vectors, "ivf")
    assert index.record.lists == list_count(4000) == 63
    found = index.search(asked, 10, probes=index.record.lists)
    np.testing.assert_array_equal(found.rows, flat.rows)
    np.testing.assert_array_equal(found.similarity, flat.similarity)
    np.testing.assert_array_equal(index.exact(asked, 10).rows, flat.rows)


def test_recall_grows_with_probes_up_to_all(tmp_path: Path) -> None:
    vectors, asked = clustered(6000), clustered(80, seed=1)
    index = built(tmp_path / "ivf", vectors, "ivf")
    measured = [recall(index, asked, 10, probes=n) for n in (1, 8, index.record.lists)]
    assert measured == sorted(measured)
    assert measured[0] < measured[2] == 1
    true = brute_force(vectors, asked, 10)[0]
    found = index.search(asked, 10).rows
    by_hand = np.mean([np.isin(a, b).mean() for a, b in zip(true, found, strict=True)])
    assert recall(index, asked, 10) == pytest.approx(by_hand)
    assert by_hand > 0.95


def test_shards_answer_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, asked = clustered(3000), clustered(40, seed=1)
    whole = built(tmp_path / "one", vectors, "ivf")
    monkeypatch.setattr("coverslip.encoders.search.SHARD_BYTES", 40_000)
    index = built(tmp_path / "several", vectors, "ivf")
    assert index.record.shards == 3
    ranges = [index.record.shard(n) for n in range(3)]
    assert [row for rows in ranges for row in rows] == list(range(3000))
    found = index.search(asked, 10, probes=index.record.lists)
    np.testing.assert_array_equal(found.rows, whole.exact(asked, 10).rows)


@pytest.mark.parametrize("kind", ["flat", "ivf"])
def test_what_is_left_out_is_not_found(tmp_path: Path, kind: str) -> None:
    vectors = clustered(500)
    index = built(tmp_path / "index", vectors, kind)
    first = index.exact(vectors[:1], 5).rows[0]
    assert first[0] == 0
    found = index.search(vectors[:1], 3, leaving_out=first[:2], probes=index.record.lists)
    assert found.rows[0].tolist() == first[2:].tolist()
    none = index.search(vectors[:1], 2, leaving_out=np.arange(500))
    assert none.rows.tolist() == [[-1, -1]]
    assert np.isneginf(none.similarity).all()


@pytest.mark.parametrize("kind", ["flat", "ivf"])
def test_more_than_there_are(tmp_path: Path, kind: str) -> None:
    found = built(tmp_path / "index", clustered(4), kind).search(clustered(2, seed=1), 6)
    assert (np.sort(found.rows[:, :4], axis=1) == np.arange(4)).all()
    assert (found.rows[:, 4:] == -1).all()


def test_equals_come_in_the_order_of_their_rows_and_zeros_are_like_nothing(tmp_path: Path) -> None:
    vectors = np.repeat(clustered(1), 6, axis=0)
    vectors[2] = 0
    found = built(tmp_path / "index", vectors, "flat").search(vectors[:1], 6)
    assert found.rows[0].tolist() == [0, 1, 3, 4, 5, 2]
    assert found.similarity[0, 5] == 0


def test_queries_of_another_dimension(tmp_path: Path) -> None:
    index = built(tmp_path / "index", clustered(50), "flat")
    with pytest.raises(ValueError, match=r"\[Q, 24\], got \(1, 8\)"):
        index.search(clustered(1, 8), 1)


def test_unit_refuses_what_is_not_finite() -> None:
    assert unit(np.array([[3.0, 4.0], [0, 0]])).tolist() == [
        [pytest.approx(0.6), pytest.approx(0.8)],
        [0, 0],
    ]
    with pytest.raises(ValueError, match="not finite"):
        unit(np.array([[1.0, np.nan]]))


# ---------------------------------------------------------------- on disk


@pytest.mark.parametrize("kind", ["flat", "ivf"])
def test_an_index_reopened_answers_the_same(tmp_path: Path, kind: str) -> None:
    vectors, asked = clustered(1500), clustered(30, seed=1)
    index = built(tmp_path / "index", vectors, kind)
    moved = (tmp_path / "index").rename(tmp_path / "elsewhere")
    again = VectorIndex.open(moved)
    assert again.record == index.record
    for a, b in zip(index.search(asked, 7), again.search(asked, 7), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_same_stream_gives_the_same_bytes(tmp_path: Path) -> None:
    vectors = clustered(1500)
    one, other = tmp_path / "one", tmp_path / "other"
    built(one, vectors, "ivf", block=100)
    built(other, vectors, "ivf", block=999)
    names = sorted(path.name for path in one.iterdir())
    assert names == ["index.json", "ivf-0.index", "vectors.npy"]
    for name in names:
        assert (one / name).read_bytes() == (other / name).read_bytes()


def test_an_interrupted_build_leaves_what_was_there_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    vectors = clustered(300)

    def breaks() -> Iterator[np.ndarray]:
        yield vectors[:200]
        raise KeyboardInterrupt

    parts = [Part("a", "1", 300)]
    with pytest.raises(KeyboardInterrupt):
        build_index(folder, breaks(), MADE_BY, parts, dim=24)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(StoreError, match="no index"):
        VectorIndex.open(folder)
    before = built(folder, vectors, "flat").record
    with pytest.raises(KeyboardInterrupt):
        build_index(folder, breaks(), MADE_BY, parts, dim=24)
    assert VectorIndex.open(folder).record == before


def test_a_killed_build_is_no_index_and_the_next_clears_it_away(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\n"
        "import numpy as np\n"
        "from pathlib import Path\n"
        "from coverslip.encoders.search import MadeBy, Part, build_index\n"
        "def blocks():\n"
        "    yield np.ones((10, 4), np.float32)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "made_by, parts = MadeBy('e', 'r', 'w', 'g'), [Part('a', '1', 20)]\n"
        "build_index(Path(sys.argv[1]), blocks(), made_by, parts, dim=4)\n"
    )
    folder = tmp_path / "index"
    assert subprocess.run([sys.executable, "-c", code, str(folder)]).returncode == -9
    assert [path.name for path in tmp_path.iterdir()] == [".index.partial"]
    with pytest.raises(StoreError, match="no index"):
        VectorIndex.open(folder)
    built(folder, clustered(50), "flat")
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


def test_a_stream_of_another_length_is_refused(tmp_path: Path) -> None:
    for parts in ([Part("a", "1", 9)], [Part("a", "1", 11)]):
        with pytest.raises(ValueError, match="10 vectors came"):
            build_index(tmp_path / "index", [clustered(10)], MADE_BY, parts, dim=24)
    with pytest.raises(ValueError, match=r"\[n, 8\]"):
        build_index(tmp_path / "index", [clustered(10)], MADE_BY, [Part("a", "1", 10)], dim=8)


@pytest.mark.parametrize("kind", ["flat", "ivf"])
def test_damage_is_told(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "index"
    built(folder, clustered(200), kind)
    file = folder / ("vectors.npy" if kind == "flat" else "ivf-0.index")
    file.write_bytes(file.read_bytes()[:-5000])
    with pytest.raises(StoreError, match="cannot be read"):
        VectorIndex.open(folder)
    (folder / "index.json").write_bytes(b'{"schema": 1}')
    with pytest.raises(StoreError, match=r"index\.json cannot be read"):
        VectorIndex.open(folder)
    (folder / "index.json").write_bytes(b'{"schema": 7}')
    with pytest.raises(StoreVersion, match="schema 7"):
        VectorIndex.open(folder)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="tells memory as Linux does")
def test_opening_reads_no_vectors_into_memory(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    blocks = (np.ones((1000, 500), np.float32) for _ in range(25))  # 50 MB
    build_index(folder, blocks, MADE_BY, [Part("a", "1", 25_000)], dim=500, kind="flat")
    code = (
        "import sys\n"
        "import faiss\n"
        "import numpy as np\n"
        "from pathlib import Path\n"
        "from coverslip.encoders.search import VectorIndex\n"
        "def memory(what):\n"
        "    lines = Path('/proc/self/status').read_text().splitlines()\n"
        "    return next(int(x.split()[1]) for x in lines if x.startswith(what)) / 1024\n"
        "before = memory('VmRSS'), memory('RssAnon')\n"
        "index = VectorIndex.open(Path(sys.argv[1]))\n"
        "opened = memory('VmRSS') - before[0]\n"
        "index.search(np.ones((1, 500), np.float32), 5)\n"
        "print(opened, memory('RssAnon') - before[1])\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True
    )
    opened, own = map(float, run.stdout.split())
    assert opened < 10  # MB, of 50
    assert own < 25


def test_the_number_decides_the_kind() -> None:
    few, many = (IndexRecord.of(MADE_BY, [Part("a", "1", n)], 384, None) for n in (1000, 2_000_000))
    assert (few.kind, few.shards, few.lists, few.probes) == ("flat", 0, 0, 0)
    assert many.kind == "ivf"
    assert many.shards == 4
    assert (many.lists, many.probes) == (707, 45)
    assert list_count(1) == 1
    assert IndexRecord.from_dict(many.to_dict()) == many


def test_another_maker_is_refused_by_its_first_difference() -> None:
    MADE_BY.require(MADE_BY, "it")
    other = MadeBy("ours", "recipe", "other weights", "256px_0.5mpp")
    with pytest.raises(RecipeMismatch, match=r"query\.png: its weights sha256 is other"):
        MADE_BY.require(other, "query.png")


# ---------------------------------------------------------------- slides


def test_a_mosaic_covers_colours_and_places() -> None:
    rng = np.random.default_rng(0)
    colours = np.repeat([[200, 150, 180], [90, 40, 120], [240, 240, 240]], [500, 60, 8], axis=0)
    colours = colours + rng.normal(0, 2, colours.shape)
    places = rng.uniform(0, 1000, (568, 2))
    chosen = mosaic(colours, places, share=0.05, clusters=3)
    assert (np.diff(chosen) > 0).all()
    counts = [((chosen >= a) & (chosen < b)).sum() for a, b in ((0, 500), (500, 560), (560, 568))]
    assert counts == [25, 3, 1]
    # every tile of the largest group has a chosen one of its group near by
    near = np.hypot(*(places[:500, None] - places[chosen[chosen < 500]]).transpose(2, 0, 1))
    assert near.min(axis=1).max() < 300
    np.testing.assert_array_equal(chosen, mosaic(colours, places, share=0.05, clusters=3))


@pytest.mark.parametrize("count", [1, 2, 9, 30])
def test_a_mosaic_of_few_or_equal_tiles(count: int) -> None:
    places = np.stack([np.arange(count), np.zeros(count)], axis=1)
    alike = mosaic(np.zeros((count, 3)), places)
    assert 1 <= len(alike) <= 9
    np.testing.assert_array_equal(mosaic(places, places, share=1.0), np.arange(count))


def test_a_mosaic_of_nothing() -> None:
    assert mosaic(np.empty((0, 3)), np.empty((0, 2))).tolist() == []
    with pytest.raises(ValueError, match="share"):
        mosaic(np.zeros((4, 3)), np.zeros((4, 2)), share=0)
    with pytest.raises(ValueError, match="positions"):
        mosaic(np.zeros((4, 3)), np.zeros((5, 2)))


def test_the_median_of_the_minima_by_hand() -> None:
    # the rows' minima are 1, 2 and 8
    assert median_of_minimum(np.array([[1.0, 5.0], [4.0, 2.0], [9.0, 8.0]])) == 2
    # the other way round, 1 and 2: not symmetric
    assert median_of_minimum(np.array([[1.0, 5.0], [4.0, 2.0], [9.0, 8.0]]).T) == 1.5


def test_barcodes_by_hand() -> None:
    vectors = np.array([[3.0, 1, 2, 2], [1, 2, 1, 3]])
    # falls, rises, stays: 100; rises, falls, rises: 010
    assert barcodes(vectors).tolist() == [[0b1000_0000], [0b0100_0000]]
    assert distances(vectors, vectors, "hamming").tolist() == [[0, 2], [2, 0]]


def test_distances_by_hand() -> None:
    query, candidate = np.array([[1.0, 0]]), np.array([[0.0, 2], [4, 4], [-1, 0]])
    np.testing.assert_allclose(distances(query, candidate, "euclidean"), [[5**0.5, 5, 2]])
    np.testing.assert_allclose(
        distances(query, candidate, "cosine"), [[1, 1 - 0.5**0.5, 2]], atol=1e-7
    )
    with pytest.raises(ValueError, match="euclidean, cosine or hamming"):
        distances(query, candidate, "city")  # type: ignore[arg-type]
