"""``OnlineHead``: a classifier on feature vectors that learns from a stream, with scikit-learn's interface."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import check_is_fitted

from torchdfa.online import inputs, parameters
from torchdfa.online.memory import Memory, memory_of
from torchdfa.online.network import Network, softmax
from torchdfa.online.replay import Replay
from torchdfa.online.scaler import Scaler, new_scaler

if TYPE_CHECKING:
    from typing_extensions import Self


class OnlineHead(ClassifierMixin, BaseEstimator):
    """Fully-connected layers on feature vectors, trained one sample after another by any of torchdfa's rules.

    An update is a step of SGD on the mean cross-entropy of ``batch_size`` rows, with the errors of the hidden layers
    from ``rule``; without autograd, gradient buffers or growth. Inputs are brought to mean 0 and variance 1 by
    statistics of the stream. How a stream is cut into calls of ``partial_fit`` makes no difference as long as the
    pieces are multiples of ``batch_size``.

    Without ``replay`` a stream that comes class by class makes it forget: see docs/online.md.

    Args:
        features: width of the inputs; None takes that of the first batch.
        classes: labels, or their number for 0, 1, ...; None takes those given to the first ``partial_fit``.
        rule: ``"bp"`` (Eq. 2), ``"fa"`` (Eq. 5), ``"dfa"`` (Eq. 6), ``"bdfa"`` (Eq. 9) or ``"frozen"``.
        hidden_layer_sizes: units of each hidden layer; ``()`` is softmax regression.
        learning_rate: of SGD. Stable values fall with the width of the widest layer; tune it on a stream of yours.
        momentum: of SGD; above 0 it takes as much memory as the weights, and a second pass over them in each update.
        weight_decay: of SGD, on weights and biases.
        batch_size: rows of one update; None makes every call one update.
        epochs: passes of ``fit`` over its rows; ``partial_fit`` makes one.
        replay: rows of each class that are kept and learned again; 0 keeps none.
        replay_rows: kept rows that join each update.
        init, distribution, scale: of the feedback, as for ``torchdfa.convert_``.
        keep_signs: keep a ±1 copy of one-bit feedback in memory; False unpacks the bits in each update.
        dtype: ``"float32"`` or ``"float64"``.
        seed: of weights, feedback, replay, and the order in which ``fit`` takes its rows.

    Attributes:
        ``classes_``: labels in the order of ``predict_proba``'s columns; added ones come last.
        ``n_features_in_``: width of the inputs.
        ``updates_``: updates made.
        ``undone_``: updates that were not made because they were not finite or exploded.
        ``network_``, ``scaler_``, ``replay_``: the state.

    Wrong parameters raise UsageError or ConversionError (both ValueErrors) at the first batch, as scikit-learn asks.
    """

    classes_: NDArray[Any]
    n_features_in_: int
    network_: Network
    scaler_: Scaler
    replay_: Replay | None
    updates_: int
    undone_: int
    _places: dict[Any, int]
    _accepted: tuple[Any, ...]

    def __init__(
        self,
        features: int | None = None,
        classes: int | Sequence[Any] | None = None,
        *,
        rule: Literal["bp", "fa", "dfa", "bdfa", "frozen"] = "bdfa",
        hidden_layer_sizes: tuple[int, ...] = (512,),
        learning_rate: float = 0.01,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        batch_size: int | None = 1,
        epochs: int = 1,
        replay: int = 0,
        replay_rows: int = 8,
        init: Literal["random", "product"] = "random",
        distribution: Literal["normal", "uniform", "sign"] = "normal",
        scale: float | Literal["unit", "he", "match"] | None = None,
        keep_signs: bool = True,
        dtype: Literal["float32", "float64"] = "float32",
        seed: int = 0,
    ) -> None:
        self.features = features
        self.classes = classes
        self.rule = rule
        self.hidden_layer_sizes = hidden_layer_sizes
        self.learning_rate = learning_rate
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.batch_size = batch_size
        self.epochs = epochs
        self.replay = replay
        self.replay_rows = replay_rows
        self.init = init
        self.distribution = distribution
        self.scale = scale
        self.keep_signs = keep_signs
        self.dtype = dtype
        self.seed = seed

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Forget everything and learn from ``X`` (rows, features) and ``y`` (rows,), ``epochs`` times, shuffled."""
        fresh = self._blank()
        rows, labels = inputs.checked(fresh, X, y, first=True)
        fresh._begin(rows.shape[1], parameters.labels(labels if self.classes is None else self.classes))
        batch = inputs.batch(rows, labels, sample_weight, fresh._places)
        random = np.random.default_rng(self.seed)
        for _ in range(self.epochs):
            fresh._learn_all(batch.in_order(random.permutation(len(batch.x))))
        return self._become(fresh)

    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> Self:
        """Learn from the next rows of the stream, in their order.

        Args:
            X: (rows, features), numbers, one row or more.
            y: (rows,), labels among ``classes_``.
            classes: every label that can occur; for the first call, unless the head was made with ``classes``.
            sample_weight: (rows,), factors of each row's loss; rows of weight 0 leave no trace.

        Raises ValueError for an input that is not finite, of another width, of unknown label, empty or of weight 0
        throughout, with nothing changed. Warns (ConvergenceWarning) of an update that was not made, because it was not
        finite or exploded.
        """
        if hasattr(self, "network_"):
            parameters.require_unchanged(self, classes)
            rows, labels = inputs.checked(self, X, y, first=False)
            self._learn_all(inputs.batch(rows, labels, sample_weight, self._places))
            return self
        fresh = self._blank()
        known = parameters.first_labels(self.classes, classes)
        rows, labels = inputs.checked(fresh, X, y, first=True)
        fresh._begin(rows.shape[1], known)
        fresh._learn_all(inputs.batch(rows, labels, sample_weight, fresh._places))
        return self._become(fresh)

    def add_class(self, label: Any) -> Self:
        """Make room for ``label``: one more output, with feedback that leaves what there is unchanged.

        UsageError where the label is known already or of another kind than the others.
        """
        check_is_fitted(self)
        parameters.require_unchanged(self)
        self.classes_ = parameters.with_label(self.classes_, label)
        self._places[self.classes_[-1].item()] = len(self.classes_) - 1
        self.network_.add_output()
        if self.replay_ is not None:
            self.replay_.add_class()
        return self

    def predict_proba(self, X: Any) -> NDArray[np.floating[Any]]:
        """Probabilities (rows, classes) in the order of ``classes_``."""
        check_is_fitted(self)
        rows = inputs.checked_rows(self, X)
        return softmax(self.network_.forward(self.scaler_.scaled(rows).astype(rows.dtype))[-1])

    def predict(self, X: Any) -> NDArray[Any]:
        """The likeliest label of each row, (rows,)."""
        found = self.predict_proba(X).argmax(1)
        return self.classes_[found]

    def memory(self) -> Memory:
        """Bytes that this head takes, part by part; before the first batch it must have been made with sizes."""
        return memory_of(self)

    def save(self, path: str | Path) -> None:
        """Write everything that decides how learning goes on as one safetensors file, whole or not at all."""
        from torchdfa.online import store

        store.save(self, Path(path))

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """A head as it was saved; it goes on bit for bit. UsageError where the file is damaged or of something else."""
        from torchdfa.online import store

        return store.load(cls, Path(path))

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "network_")

    def _blank(self) -> Self:
        """One with the same parameters and no state: what fails on the way leaves this one as it was."""
        parameters.check(self)
        return type(self)(**self.get_params())

    def _become(self, other: Self) -> Self:
        for name in [name for name in vars(self) if name.endswith("_")]:
            delattr(self, name)
        self.__dict__.update(vars(other))
        return self

    def _begin(self, features: int, classes: NDArray[Any]) -> None:
        """The state before the first update."""
        widths = parameters.widths(self, features, len(classes))
        self.n_features_in_ = features
        self.classes_ = classes
        self._places = {label: place for place, label in enumerate(classes.tolist())}
        self._accepted = parameters.accepted(self)
        self.network_ = Network(
            widths, parameters.settings(self), self.dtype, momentum=self.momentum > 0, keep_signs=self.keep_signs,
        )  # fmt: skip
        self.scaler_ = new_scaler(features)
        self.replay_ = Replay(len(classes), self.replay, features, self.dtype, self.seed) if self.replay else None
        self.updates_ = self.undone_ = 0

    def _learn_all(self, batch: inputs.Batch) -> None:
        rows = len(batch.x)
        size = self.batch_size or rows
        if 0 < rows <= size:
            self._learn(batch)
            return
        for start in range(0, rows, size):
            self._learn(batch.part(slice(start, start + size)))

    def _learn(self, batch: inputs.Batch) -> None:
        """One update, or none and a warning."""
        scaler, scaled = self.scaler_.after(batch.x, batch.weights)
        labels, weights, drawn = batch.labels, batch.weights, 0
        if self.replay_ is not None:
            old, old_labels = self.replay_.draw(self.replay_rows)
            drawn = len(old)
            scaled, labels = np.concatenate([scaled, scaler.scaled(old)]), labels + old_labels
            weights = np.concatenate([weights, np.ones(drawn)])
        shares = None if len(weights) == 1 == weights[0] else (weights / len(weights)).astype(self.dtype)[:, None]
        fault = self.network_.update(
            scaled.astype(self.dtype), labels, shares, self.learning_rate, self.momentum, self.weight_decay
        )
        if fault is not None:
            self._report(fault)
            return
        self.scaler_, self.updates_ = scaler, self.updates_ + 1
        if self.replay_ is not None:
            self.replay_.advance(drawn)
            self.replay_.keep(batch.x, batch.labels)

    def _report(self, fault: str) -> None:
        self.undone_ += 1
        warnings.warn(
            f"update {self.updates_ + 1} was not made, the {self.undone_}. of this head: {fault}; "
            "look at the sample, or take a lower learning_rate",
            ConvergenceWarning,
            stacklevel=4,
        )
