"""What the head is compared with is what it is called: equal to scikit-learn's on the same samples."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.neighbors import NearestCentroid

FILE = Path(__file__).resolve().parents[2] / "benchmarks" / "online_baselines.py"
spec = importlib.util.spec_from_file_location("online_baselines", FILE)
assert spec is not None
assert spec.loader is not None
baselines = importlib.util.module_from_spec(spec)
spec.loader.exec_module(baselines)


def samples():
    random = np.random.default_rng(0)
    y = random.permutation(np.repeat(np.arange(4), 60))  # equal numbers: sklearn weighs covariances by class
    mixing, centres = random.standard_normal((6, 6)), random.standard_normal((4, 6))
    return random.standard_normal((240, 6)) @ mixing + centres[y], y, random.standard_normal((2000, 6)) * 2


def streamed(learner, x, y):
    for i in range(len(x)):
        learner.partial_fit(x[i : i + 1], y[i : i + 1], **({"classes": np.unique(y)} if i == 0 else {}))
    return learner


def test_nearest_class_mean():
    x, y, other = samples()
    assert np.array_equal(
        streamed(baselines.NearestMean(), x, y).predict(other), NearestCentroid().fit(x, y).predict(other)
    )


def test_streaming_lda():
    x, y, other = samples()
    learner = streamed(baselines.StreamingLDA(shrinkage=1e-12), x, y)
    learner.solve()
    theirs = LinearDiscriminantAnalysis(solver="lsqr").fit(x, y)
    np.testing.assert_allclose(learner.scatter / len(x), theirs.covariance_, rtol=1e-10, atol=1e-12)
    assert np.array_equal(learner.predict(other), theirs.predict(other))
