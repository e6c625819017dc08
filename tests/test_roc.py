"""Areas under the curve follow from their definitions."""

import numpy as np
import pytest

from experiments.results import roc


def test_areas_from_hard_predictions_follow_from_the_accuracy():
    rng = np.random.RandomState(0)
    label = np.arange(200) % 5
    prob = rng.dirichlet(np.ones(5), 200) + 0.4 * np.eye(5)[label]
    prob /= prob.sum(1, keepdims=True)
    top1 = np.mean(prob.argmax(1) == label)
    found = roc.areas(prob, label)
    assert found["hard"] == pytest.approx((top1 + 1 - (1 - top1) / 4) / 2)
    assert found["hard"] < found["macro"] < 1
    # By definition: the chance that a positive is ranked above a negative.
    truth = np.eye(5)[label].ravel() == 1
    wins = prob.ravel()[truth][:, None] > prob.ravel()[~truth][None, :]
    assert found["micro"] == pytest.approx(wins.mean())
    perfect = roc.areas(np.eye(5)[label], label)
    assert perfect == {"hard": 1.0, "macro": 1.0, "micro": 1.0}
    drawn = roc.curves(prob, label)
    assert set(drawn["curves"]) == {"micro", "0", "1", "2", "3", "4"}
    for curve in drawn["curves"].values():
        assert np.all(np.diff(curve["tpr"]) >= 0)
        assert np.trapezoid(curve["tpr"], drawn["fpr"]) == pytest.approx(curve["area"], abs=0.02)
