"""Receiver operating characteristics of a classifier with K classes, each against the rest.

`hard` treats the prediction as certain: 1 for the predicted class, 0 for the others. This is the
"average ROC" of RTK's Table 3 (Yang et al. 2022, arXiv 2206.12788): with equally many
examples of every class it is (accuracy + 1 - (1 - accuracy) / (K - 1)) / 2, and the printed values
fit that to 0.0055. Areas of probabilities are much closer to 1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score, roc_curve

CURVE_POINTS = 40
CURVE_CLASSES = 5  # the first five, as in RTK's Figure 6


def areas(prob: np.ndarray, label: np.ndarray) -> dict[str, float]:
    """Areas under the curve.

    Args:
      prob: [N, K] class probabilities.
      label: [N] class numbers; every class occurs.

    Returns:
      hard: macro average over the classes from hard predictions; macro, micro: from probabilities.
    """
    truth = np.eye(prob.shape[1])[label]  # [N, K]
    hard = np.eye(prob.shape[1])[prob.argmax(1)]
    return {
        "hard": float(roc_auc_score(truth, hard, average="macro")),
        "macro": float(roc_auc_score(truth, prob, average="macro")),
        "micro": float(roc_auc_score(truth.ravel(), prob.ravel())),
    }


def curves(prob: np.ndarray, label: np.ndarray) -> dict[str, Any]:
    """Curves to draw, for the micro average and the first classes.

    Args:
      prob, label: as for `areas`.

    Returns:
      fpr: false positive rates, densely near 0, where curves of good classifiers bend.
      curves: "micro" or a class number -> {tpr, area}.
    """
    truth = np.eye(prob.shape[1])[label]
    pairs = {"micro": (truth.ravel(), prob.ravel())}
    for k in range(min(CURVE_CLASSES, prob.shape[1])):
        pairs[str(k)] = (truth[:, k], prob[:, k])
    at = np.linspace(0, 1, CURVE_POINTS) ** 3
    found = {}
    for name, (true, score) in pairs.items():
        fpr, tpr, _ = roc_curve(true, score)
        found[name] = {
            "tpr": np.round(np.interp(at, fpr, tpr), 4).tolist(),
            "area": round(float(roc_auc_score(true, score)), 5),
        }
    return {"fpr": np.round(at, 5).tolist(), "curves": found}
