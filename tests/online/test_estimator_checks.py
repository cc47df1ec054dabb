"""scikit-learn's own checks of an estimator."""

from __future__ import annotations

import warnings

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from torchdfa.online import OnlineHead

WEIGHTS = (
    "a row of weight 2 is one step of twice the length, two rows are two steps, and the order of rows matters; "
    "scikit-learn expects the same of its SGDClassifier"
)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
@parametrize_with_checks(
    [
        OnlineHead(hidden_layer_sizes=(32,)),
        OnlineHead(rule="bp", hidden_layer_sizes=(16,), dtype="float64", replay=4, momentum=0.5),
    ],
    expected_failed_checks=lambda _: {"check_sample_weight_equivalence_on_dense_data": WEIGHTS},
)
def test_scikit_learn_checks(estimator: OnlineHead, check) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check(estimator)
