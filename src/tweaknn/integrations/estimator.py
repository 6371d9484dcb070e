"""A mended network as a scikit-learn classifier."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import unique_labels
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tweaknn.errors import InputError


class MendedClassifier(ClassifierMixin, BaseEstimator):
    """Mends a trained network on ``fit`` and predicts with ``nn + Δnn``; scikit-learn's habits throughout.

    Parameters are kept as they are given; what ``fit`` finds ends in ``_``. Labels are the positions of the network's
    outputs. When nothing helps, it predicts as the base does.

    Args:
        network: the base, a trained ``nn.Module`` on ``(n, features)`` float inputs; it is never changed.
        worst: how many of the least accurate classes are targets, unless
        targets: names them by position.
        method: see :class:`tweaknn.SynapticJoin`, as for the following.
        promise: which rule the other classes are under.
        tolerance: what that rule may give up, a fraction.
        seed: of everything random.

    Attributes:
        delta_: the delta, or None.
        result_: the join's result.
        classes_: ``(c,)`` labels.
    """

    def __init__(
        self,
        network: nn.Module | None = None,
        worst: int = 1,
        targets: list[int] | None = None,
        method: str = "fit",
        promise: str | None = None,
        tolerance: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.network = network
        self.worst = worst
        self.targets = targets
        self.method = method
        self.promise = promise
        self.tolerance = tolerance
        self.seed = seed

    def fit(self, X: Any, y: Any) -> MendedClassifier:
        """Mend on ``X`` ``(n, features)``, ``y`` ``(n,)``. Raises InputError when the labels fit no output."""
        from tweaknn.join.run import SynapticJoin

        if self.network is None:
            raise InputError("MendedClassifier needs a trained network: MendedClassifier(network=net).")
        X, y = validate_data(self, X, y, dtype=np.float32, allow_nd=True)
        labels = np.asarray(y)
        if not np.issubdtype(labels.dtype, np.integer):
            raise InputError("Labels are the positions of the network's outputs: whole numbers from 0.")
        data = TensorDataset(torch.from_numpy(np.ascontiguousarray(X)), torch.from_numpy(labels.astype(np.int64)))
        join = SynapticJoin(method=self.method, promise=self.promise, tolerance=self.tolerance, seed=self.seed)
        chosen: dict[str, Any] = {"targets": self.targets} if self.targets is not None else {"worst": self.worst}
        self.result_ = join.fit(self.network, DataLoader(data, batch_size=128), **chosen)
        self.delta_ = self.result_.delta
        self.classes_ = np.arange(len(self.result_.classes))
        unique_labels(labels)
        self._tweaked = self.delta_.attach(self.network) if self.delta_ is not None else self.network
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """Logits ``(n, c)``."""
        from tweaknn.network.modes import call, eval_mode, logits_of

        check_is_fitted(self, "result_")
        X = validate_data(self, X, dtype=np.float32, allow_nd=True, reset=False)
        with eval_mode(self._tweaked), torch.inference_mode():
            rows = [
                logits_of(call(self._tweaked, torch.from_numpy(np.ascontiguousarray(X[i : i + 256])))).float().numpy()
                for i in range(0, len(X), 256)
            ]
        return np.concatenate(rows)

    def predict_proba(self, X: Any) -> np.ndarray:
        """Softmax of the logits, ``(n, c)``."""
        return torch.from_numpy(self.decision_function(X)).softmax(1).numpy()

    def predict(self, X: Any) -> np.ndarray:
        """Labels ``(n,)``."""
        logits = self.decision_function(X)
        return self.classes_[logits.argmax(1)]
