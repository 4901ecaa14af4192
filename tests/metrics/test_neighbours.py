"""Votes of the nearest neighbours against brute force in float64 and scikit-learn; blocks, ties, memory."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from mmvicreg.errors import UserError
from mmvicreg.metrics import neighbour_credit

CLASSES = 4


def _data(n: int = 60, q: int = 23, d: int = 5, seed: int = 0) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((CLASSES, d))
    y, asked = rng.integers(0, CLASSES, n), rng.integers(0, CLASSES, q)
    x = (centres[y] + rng.standard_normal((n, d))) * rng.uniform(0.1, 9, (n, 1))
    queries = centres[asked] + rng.standard_normal((q, d))
    return queries.astype(np.float32), asked, x.astype(np.float32), y


def _brute_force(
    queries: np.ndarray, asked: np.ndarray, x: np.ndarray, y: np.ndarray, k: int, temperature: float | None
) -> list[float]:
    """One query at a time, the whole row of cosines sorted; votes of equal weight share the hit."""
    x, queries = x.astype(np.float64), queries.astype(np.float64)
    credit = []
    for query, label in zip(queries, asked, strict=True):
        cosine = x @ query / (np.linalg.norm(x, axis=1) * np.linalg.norm(query))
        near = sorted(range(len(x)), key=lambda i: (-round(cosine[i], 12), i))[:k]
        votes = np.zeros(CLASSES)
        for i in near:
            votes[y[i]] += 1.0 if temperature is None else np.exp(cosine[i] / temperature)
        winners = np.flatnonzero(np.isclose(votes, votes.max(), rtol=1e-9))
        credit.append(float(label in winners) / len(winners))
    return credit


def _voted(queries: np.ndarray, x: np.ndarray, y: np.ndarray, *, k: list[int]) -> np.ndarray:
    """``(q, len(k))``: the class that is voted for where none ties: the one whose label would be right."""
    every = [neighbour_credit(queries, np.full(len(queries), label), x, y, k=k, classes=CLASSES)[:, :, 0]
             for label in range(CLASSES)]  # fmt: skip
    np.testing.assert_array_equal(
        np.sort(every, axis=0)[-2:], [np.zeros_like(every[0]), np.ones_like(every[0])]
    )
    return np.argmax(every, axis=0)


@pytest.mark.parametrize("temperature", [None, 0.07, 0.5])
def test_equals_brute_force_in_float64(temperature: float | None) -> None:
    data = _data()
    found = neighbour_credit(
        *data,
        k=[1, 3, 20, 60],
        classes=CLASSES,
        temperature=temperature or 1.0,
        weighting="uniform" if temperature is None else "exp",
    )
    for i, k in enumerate([1, 3, 20, 60]):
        assert found[:, i, 0].tolist() == pytest.approx(_brute_force(*data, k, temperature))


def test_equals_scikit_learn_where_no_votes_tie() -> None:
    queries, asked, x, y = _data(300, 80)
    model = KNeighborsClassifier(
        21, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / 0.07)
    ).fit(x.astype(float), y)
    voted = _voted(queries, x, y, k=[21])[:, 0]
    np.testing.assert_array_equal(voted, model.predict(queries.astype(float)))
    assert len(set(voted.tolist())) == CLASSES
    found = neighbour_credit(queries, asked, x, y, k=[21], classes=CLASSES)
    np.testing.assert_array_equal(found[:, 0, 0], (voted == asked).astype(float))
    share = model.predict_proba(queries.astype(float))
    second = [label in np.argsort(-row)[:2] for row, label in zip(share, asked, strict=True)]
    found = neighbour_credit(queries, asked, x, y, k=[21], classes=CLASSES, tops=(1, 2))
    sure = (
        np.sort(share)[:, -2] > 0
    )  # elsewhere all neighbours are of one class, and the others tie for second
    assert sure.sum() > 60
    np.testing.assert_array_equal(found[sure, 0, 1], np.array(second, dtype=float)[sure])


@pytest.mark.parametrize("block", [1, 7, 23, 1000])
def test_blocks_and_shares_change_nothing_even_where_everything_ties(block: int) -> None:
    rng = np.random.default_rng(1)
    x, queries = rng.integers(-1, 2, (90, 2)), rng.integers(-1, 2, (23, 2))  # many copies, some of length 0
    y, asked = rng.integers(0, CLASSES, 90), rng.integers(0, CLASSES, 23)
    whole = neighbour_credit(queries, asked, x, y, k=[1, 5, 40], classes=CLASSES)
    some = [
        neighbour_credit(queries, asked, x, y, k=[1, 5, 40], classes=CLASSES, block=block, rows=rows)
        for rows in ((0, 9), (9, 9), (9, 23))
    ]
    np.testing.assert_array_equal(np.concatenate(some), whole)
    for i, k in enumerate([1, 5, 40]):
        with np.errstate(invalid="ignore"):
            expected = _brute_force(*_without_nan(queries, asked, x, y), k, 0.07)
        assert whole[:, i, 0].tolist() == pytest.approx(expected)


def _without_nan(
    queries: np.ndarray, asked: np.ndarray, x: np.ndarray, y: np.ndarray
) -> tuple[np.ndarray, ...]:
    """The cosine with a vector of length 0 is 0: it gets a dimension of its own."""

    def apart(vectors: np.ndarray, place: int) -> np.ndarray:
        more = np.zeros((len(vectors), 2))
        more[~vectors.any(1), place] = 1
        return np.hstack([vectors, more])

    return apart(queries, 0), asked, apart(x, 1), y


def test_a_collapsed_representation_scores_chance() -> None:
    y = np.sort(np.arange(100) % CLASSES)
    for weighting in ("exp", "uniform"):
        found = neighbour_credit(
            np.ones((40, 3)),
            np.arange(40) % CLASSES,
            np.ones((100, 3)),
            y,
            k=[20, 100],
            classes=CLASSES,
            weighting=weighting,
        )
        assert found.mean(0)[:, 0].tolist() == pytest.approx([1 / CLASSES] * 2)


def test_a_small_temperature_is_the_nearest_neighbour() -> None:
    data = _data()
    sharp = neighbour_credit(*data, k=[1, 50], classes=CLASSES, temperature=1e-9)
    np.testing.assert_array_equal(sharp[:, 0], sharp[:, 1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": [61]}, "only 60 training samples"),
        ({"k": [0]}, "at least 1"),
        ({"k": []}, "got none"),
        ({"k": [1], "temperature": 0.0}, "above 0"),
        ({"k": [1], "temperature": float("nan")}, "above 0"),
        ({"k": [1], "weighting": "expo"}, "did you mean 'exp'"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        neighbour_credit(*_data(), classes=CLASSES, **options)  # type: ignore[arg-type]


def test_labels_that_do_not_fit_are_refused() -> None:
    queries, asked, x, y = _data()
    with pytest.raises(UserError, match="60 training vectors"):
        neighbour_credit(queries, asked, x, y[:-1], k=[1], classes=CLASSES)
    with pytest.raises(UserError, match="outside the 2 classes"):
        neighbour_credit(queries, asked + 2, x, y % 2, k=[1], classes=2)


_LARGE = """
from pathlib import Path
import numpy as np
from mmvicreg.metrics import nearest_candidates, neighbour_credit
def resident(peak):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM" if peak else "VmRSS"))
rng = np.random.default_rng(0)
y, asked = rng.integers(0, 10, 50_000), rng.integers(0, 10, 10_000)
centres = rng.standard_normal((10, 64))
x = (centres[y] + 3 * rng.standard_normal((50_000, 64))).astype(np.float32)
q = (centres[asked] + 3 * rng.standard_normal((10_000, 64))).astype(np.float32)
neighbour_credit(q, asked, x[:5000], y[:5000], k=[20], classes=10, rows=(0, 2))
Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here on
before = resident(peak=False)
found = neighbour_credit(q, asked, x, y, k=[20, 200], classes=10)
print((resident(peak=True) - before) / 1024)
near = nearest_candidates(q, x, 200)
unit, ask = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (x.astype(float), q.astype(float)))
for start in range(0, 10_000, 250):  # the neighbours of every query, and the class that they vote for
    rows = np.arange(start, start + 250)
    cosine = ask[rows] @ unit.T
    best = np.argpartition(-cosine, 199, axis=1)[:, :200]
    order = np.argsort(-np.take_along_axis(cosine, best, 1), axis=1)
    best = np.take_along_axis(best, order, 1)
    np.testing.assert_array_equal(near[rows], best)
    weights = np.exp(np.take_along_axis(cosine, best, 1) / 0.07)
    for i, k in enumerate((20, 200)):
        votes = np.stack([np.where(y[best[:, :k]] == c, weights[:, :k], 0).sum(1) for c in range(10)], 1)
        np.testing.assert_array_equal(found[rows, i, 0], votes.argmax(1) == asked[rows])
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is read from /proc")
def test_50_000_by_10_000_features_within_500_mb() -> None:
    done = subprocess.run([sys.executable, "-c", _LARGE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    print(f"{float(done.stdout):.0f} MB beyond the features")  # pytest -s shows it
    assert 10 < float(done.stdout) < 500  # it cannot be nothing
