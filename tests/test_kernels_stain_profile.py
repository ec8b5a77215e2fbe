"""Stain vectors against published implementations; what cannot be fitted is said, not distorted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coverslip.errors import InvalidConfig
from coverslip.kernels._stain_numpy import rgb_to_lab
from coverslip.kernels.stain import DAB, HEMATOXYLIN, stain_matrix
from coverslip.kernels.stain_profile import (
    StainMethod,
    StainNormalizer,
    StainProfile,
    fit_stains,
    jittered_stains,
    reference_profile,
    stain_images,
)
from coverslip.kernels.stain_vectors import (
    macenko_vectors,
    sparse_concentrations,
    vahadane_vectors,
)
from coverslip.tiling.reading import read_window
from coverslip.wsi.opening import open_slide

METHODS = get_args(StainMethod)
RNG = np.random.default_rng(7)


def stained(concentrations: np.ndarray, matrix: np.ndarray, glass: float = 240) -> np.ndarray:
    """uint8 [N, 3] of those concentrations."""
    level = (glass + 1) * np.exp(-concentrations @ matrix) - 1
    return np.clip(np.rint(level), 0, 255).astype(np.uint8)


def mixture(count: int = 60_000, haematoxylin: float = 1, eosin: float = 1) -> np.ndarray:
    """Two stains, each often nearly alone, as nuclei and stroma are."""
    found = RNG.gamma(2, 0.25, (count, 3)) * [haematoxylin, eosin, 0]
    found[: count // 3, 0] *= 0.05
    found[count // 3 : 2 * count // 3, 1] *= 0.05
    return found


@pytest.fixture(scope="module")
def tissue(small_slide: Path) -> np.ndarray:
    with open_slide(small_slide) as slide:
        return read_window(slide, (500, 500), (700, 900), (1.0, 1.0))


TRUE = stain_matrix((0.60, 0.72, 0.35), (0.16, 0.90, 0.40))


@pytest.mark.parametrize("method", ["macenko", "vahadane"])
def test_known_stains_are_found(method: StainMethod) -> None:
    profile = fit_stains(stained(mixture(), TRUE), method)
    assert profile.problems == ()
    np.testing.assert_allclose(profile.stains, TRUE[:2], atol=0.06)
    again = fit_stains(stained(mixture(), TRUE)[::-1], "macenko")
    np.testing.assert_allclose(again.stains, fit_stains(stained(mixture(), TRUE)).stains, atol=0.03)


def test_macenko_is_torchstains(tissue: np.ndarray) -> None:
    """Its vectors, its concentrations and its picture, on real tissue."""
    normalizers = pytest.importorskip("torchstain.numpy.normalizers")
    theirs = normalizers.NumpyMacenkoNormalizer()
    vectors, _, strongest = theirs._NumpyMacenkoNormalizer__compute_matrices(tissue, 240, 1, 0.15)
    density = -np.log((tissue.reshape(-1, 3).astype(float) + 1) / 240)
    kept = (density >= 0.15).all(axis=1)
    ours = macenko_vectors(density[kept])
    np.testing.assert_allclose(ours, vectors.T, atol=1e-6)

    profile = StainProfile.from_dict(
        reference_profile().to_dict()
        | {"background": (239.0,) * 3, "stains": ours, "max_concentration": tuple(strongest)}
    )
    target = StainProfile.from_dict(
        reference_profile().to_dict()
        | {"background": (239.0,) * 3, "stains": theirs.HERef.T,
           "max_concentration": tuple(theirs.maxCRef)}
    )  # fmt: skip
    expected, _, _ = theirs.normalize(tissue, Io=240, alpha=1, beta=0.15, stains=False)
    found = StainNormalizer(profile, target)(tissue)
    # it cuts levels down to whole ones and has no -1 for its +1: at most two levels apart
    dense = (tissue < 239).all(axis=2)  # it lets what is brighter than glass be brighter
    assert np.abs(found.astype(int) - expected)[dense].max() <= 2


def test_vahadane_is_as_good_as_scikit_learns() -> None:
    """The same objective, reached at least as closely."""
    decomposition = pytest.importorskip("sklearn.decomposition")
    density = mixture(3000) @ TRUE
    density = density[(density > 0.1).all(axis=1)]
    learner = decomposition.DictionaryLearning(
        2, alpha=0.1, fit_algorithm="cd", transform_algorithm="lasso_cd", transform_alpha=0.1,
        positive_code=True, positive_dict=True, random_state=0, max_iter=300,
    )  # fmt: skip
    theirs = learner.fit(density).components_

    def objective(vectors: np.ndarray) -> float:
        h = sparse_concentrations(density, vectors, 0.1)
        return float(((density - h @ vectors) ** 2).sum() / 2 + 0.1 * h.sum())

    ours = vahadane_vectors(density)
    unit = theirs / np.linalg.norm(theirs, axis=1, keepdims=True)
    assert objective(ours) <= objective(unit) * 1.001


def test_sparse_concentrations_are_optimal() -> None:
    """Against SciPy's bounded minimiser, pixel by pixel."""
    optimize = pytest.importorskip("scipy.optimize")
    for density in RNG.normal(0.4, 0.5, (60, 3)):
        found = sparse_concentrations(density[None], TRUE[:2], 0.1)[0]

        def cost(h: np.ndarray, density: np.ndarray = density) -> float:
            return float(((density - h @ TRUE[:2]) ** 2).sum() / 2 + 0.1 * h.sum())

        best = optimize.minimize(cost, [0.1, 0.1], bounds=[(0, None)] * 2)
        assert cost(found) <= best.fun + 1e-8
        assert (found >= 0).all()


def test_reinhard_takes_the_targets_mean_and_deviation(tissue: np.ndarray) -> None:
    """Over the whole of what was fitted, up to what is cut off at black and white."""
    source = fit_stains(tissue, "reinhard")
    gentle = StainProfile.from_dict(
        source.to_dict() | {"lab_mean": (55.0, 20.0, -12.0), "lab_std": (9.0, 6.0, 5.0)}
    )
    from coverslip.kernels._stain_numpy import density
    from coverslip.kernels.stain_vectors import stained_pixels

    flat = tissue.reshape(-1, 3)
    kept, _ = stained_pixels(flat, density(flat, source.background))
    lab = rgb_to_lab(StainNormalizer(source, gentle)(flat[kept]))
    np.testing.assert_allclose(lab.mean(axis=0), gentle.lab_mean, atol=0.3)
    np.testing.assert_allclose(lab.std(axis=0), gentle.lab_std, atol=0.3)


@pytest.mark.parametrize("method", METHODS)
def test_a_slide_as_its_own_target_stays(tissue: np.ndarray, method: StainMethod) -> None:
    profile = fit_stains(tissue, method)
    same = StainNormalizer(profile, profile)(tissue)
    # what belongs to neither stain is dropped: small on tissue
    assert np.abs(same.astype(int) - tissue).mean() < (1 if method == "reinhard" else 12)


def test_normalised_tissue_has_the_targets_stains(tissue: np.ndarray) -> None:
    target = reference_profile()
    moved = fit_stains(StainNormalizer(fit_stains(tissue), target)(tissue))
    for found, wanted in zip(moved.stains, target.stains, strict=True):
        assert np.degrees(np.arccos(np.dot(found, wanted))) < 8


def test_a_tile_without_nuclei_keeps_its_colours(tissue: np.ndarray) -> None:
    """The same pixel becomes the same colour in whatever tile it comes."""
    normalize = StainNormalizer(fit_stains(tissue), reference_profile())
    whole = normalize(tissue)
    assert np.array_equal(normalize(tissue[100:140, 30:90]), whole[100:140, 30:90])
    blank = np.full((1, 64, 64, 3), 243, np.uint8)
    assert np.ptp(normalize(blank)) <= 12, "glass stays glass"


NOT_HE = {
    "haematoxylin alone": stained(mixture(eosin=0.01), TRUE),
    "eosin alone": stained(mixture(haematoxylin=0.005), TRUE),
    "haematoxylin and DAB": stained(mixture(), stain_matrix(HEMATOXYLIN, DAB)),
    "green ink": stained(mixture(haematoxylin=0.01), stain_matrix(HEMATOXYLIN, (0.8, 0.2, 0.55))),
    "blank": np.full((5000, 3), 250, np.uint8),
    "black": np.zeros((5000, 3), np.uint8),
    "noise": RNG.integers(0, 256, (20_000, 3), dtype=np.uint8),
    "nothing": np.empty((0, 3), np.uint8),
}


@pytest.mark.parametrize("what", NOT_HE)
@pytest.mark.parametrize("method", METHODS)
def test_what_is_not_h_and_e_is_said_and_left_alone(what: str, method: StainMethod) -> None:
    profile = fit_stains(NOT_HE[what], method)
    if method in ("ruifrok", "reinhard") and what.endswith("alone"):
        pytest.skip("fixed vectors find a little of either stain in any picture of the other")
    assert profile.problems
    normalize = StainNormalizer(profile, reference_profile())
    assert not normalize.changes
    assert np.array_equal(normalize(NOT_HE[what]), NOT_HE[what])


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 4000),
    st.tuples(*[st.integers(0, 255)] * 3),
    st.sampled_from(METHODS),
)
def test_no_picture_breaks_a_fit(
    seed: int, count: int, colour: tuple[int, int, int], method: StainMethod
) -> None:
    """One colour with a little noise, of any size: a finite profile, problems or none."""
    rng = np.random.default_rng(seed)
    noise = rng.integers(-2, 3, (count, 3))
    image = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
    profile = fit_stains(image, method)
    assert StainProfile.from_dict(json.loads(json.dumps(profile.to_dict()))) == profile
    assert StainNormalizer(profile, reference_profile())(image).shape == image.shape


def test_pen_and_saturation_do_not_move_the_fit(tissue: np.ndarray) -> None:
    clean = fit_stains(tissue)
    ink = np.tile(np.array([[20, 140, 60], [10, 20, 160], [0, 0, 0]], np.uint8), (20_000, 1))
    marked = fit_stains(np.concatenate([tissue.reshape(-1, 3), ink]))
    np.testing.assert_allclose(marked.stains, clean.stains, atol=0.02)
    np.testing.assert_allclose(marked.max_concentration, clean.max_concentration, rtol=0.03)


def test_stain_images_hold_one_stain_each(tissue: np.ndarray) -> None:
    profile = fit_stains(tissue)
    for image, own in zip(stain_images(tissue, profile), profile.stains, strict=True):
        density = -np.log((image.reshape(-1, 3) + 1.0) / (np.array(profile.background) + 1))
        dense = density[(density.sum(axis=1) > 0.6) & (image.reshape(-1, 3).min(axis=1) > 20)]
        cosine = dense @ np.array(own) / np.linalg.norm(dense, axis=1)
        assert np.median(cosine) > 0.999


def test_jitter_changes_stains_but_little(tissue: np.ndarray) -> None:
    tiles = np.stack([tissue[:64, :64]] * 5)
    moved = jittered_stains(tiles, np.random.default_rng(3), strength=0.1)
    assert moved.shape == tiles.shape
    assert np.array_equal(moved, jittered_stains(tiles, np.random.default_rng(3), strength=0.1))
    assert len({tile.tobytes() for tile in moved}) == 5
    assert 1 < np.abs(moved.astype(int) - tiles).mean() < 25
    still = jittered_stains(tiles, np.random.default_rng(3), strength=0)
    assert np.abs(still.astype(int) - tiles).max() <= 1


def test_profiles_that_are_none_are_refused(tmp_path: Path) -> None:
    for text in ("[]", "{}", "nope", json.dumps(reference_profile().to_dict() | {"stains": [1]})):
        path = tmp_path / "p.json"
        path.write_text(text)
        with pytest.raises(InvalidConfig, match=r"p\.json"):
            StainProfile.from_file(path)
