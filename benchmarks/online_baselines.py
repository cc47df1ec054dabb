"""What people use on a stream of features: nearest class mean, streaming LDA, and scikit-learn's SGD and MLP."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import SGDClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import StandardScaler

Array = NDArray[np.float64]


class NearestMean:
    """Nearest class mean; of the same samples, sklearn's NearestCentroid. No learning rate, nothing forgotten."""

    def partial_fit(self, x: Array, y: Any, classes: Any = None) -> NearestMean:
        if classes is not None:
            self.classes_ = np.unique(classes)
            self.means, self.counts = np.zeros((len(self.classes_), x.shape[1])), np.zeros(len(self.classes_))
        for row, k in zip(x.astype(np.float64), np.searchsorted(self.classes_, y), strict=True):
            self._learn(row, int(k))
        return self

    def _learn(self, row: Array, k: int) -> None:
        self.counts[k] += 1
        self.means[k] += (row - self.means[k]) / self.counts[k]

    def predict(self, x: Array) -> NDArray[Any]:
        return self.classes_[self.scores(x).argmax(1)]

    def scores(self, x: Array) -> Array:
        squares = (self.means**2).sum(1)
        return np.where(self.counts > 0, x @ self.means.T - squares / 2, -np.inf)

    def score(self, x: Array, y: Any) -> float:
        return float(np.mean(self.predict(x) == y))


class StreamingLDA(NearestMean):
    """Deep SLDA (Hayes & Kanan, 2020): running class means and one covariance, with their shrinkage of 1e-4.

    The covariance is the exact one within the classes, as in sklearn's LinearDiscriminantAnalysis. Its inverse is taken
    anew after ``every`` samples while the stream runs, and whenever ``score`` is asked.
    """

    def __init__(self, shrinkage: float = 1e-4, every: int = 50) -> None:
        self.shrinkage, self.every, self.age = shrinkage, every, 0

    def partial_fit(self, x: Array, y: Any, classes: Any = None) -> StreamingLDA:
        if classes is not None:
            self.scatter = np.zeros((x.shape[1], x.shape[1]))
        super().partial_fit(x, y, classes)
        if self.age % self.every == 0 or not hasattr(self, "weights"):
            self.solve()
        self.age += 1
        return self

    def _learn(self, row: Array, k: int) -> None:
        before = row - self.means[k]
        super()._learn(row, k)
        self.scatter += np.outer(before, row - self.means[k])

    def solve(self) -> None:
        covariance = (1 - self.shrinkage) * self.scatter / max(1.0, self.counts.sum())
        covariance[np.diag_indices_from(covariance)] += self.shrinkage
        self.weights = np.linalg.solve(covariance, self.means.T)

    def scores(self, x: Array) -> Array:
        bias = (self.weights.T * self.means).sum(1) / 2
        return np.where(self.counts > 0, x @ self.weights - bias, -np.inf)

    def score(self, x: Array, y: Any) -> float:
        self.solve()
        return super().score(x, y)


class Scaled:
    """A scikit-learn estimator behind a StandardScaler that learns with it."""

    def __init__(self, estimator: Any) -> None:
        self.scaler, self.estimator = StandardScaler(), estimator

    def partial_fit(self, x: Array, y: Any, classes: Any = None) -> Scaled:
        self.scaler.partial_fit(x)
        self.estimator.partial_fit(self.scaler.transform(x), y, **({} if classes is None else {"classes": classes}))
        self.classes_ = self.estimator.classes_
        return self

    def predict(self, x: Array) -> NDArray[Any]:
        return self.estimator.predict(self.scaler.transform(x))

    def score(self, x: Array, y: Any) -> float:
        return float(np.mean(self.predict(x) == y))


def sgd(rate: float, seed: int) -> Scaled:
    """Softmax regression's nearest kin in scikit-learn: one logistic regression a class, plain SGD, no penalty."""
    return Scaled(SGDClassifier(loss="log_loss", penalty=None, learning_rate="constant", eta0=rate, random_state=seed))


def mlp(rate: float, seed: int) -> Scaled:
    """The same widths as our head, Adam as by default."""
    return Scaled(MLPClassifier((512,), learning_rate_init=rate, alpha=0.0, random_state=seed))
