"""A mended network as a scikit-learn classifier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tweaknn.errors import InputError


class MendedClassifier(ClassifierMixin, BaseEstimator):
    """Mends a trained network on ``fit`` and predicts with ``nn + Δnn``; scikit-learn's habits throughout.

    Parameters are kept as they are given; what ``fit`` finds ends in ``_``. When nothing helps, it predicts as the base does.

    **Labels** may be anything scikit-learn takes: words, whole numbers (floating-point ones too). Which output of the network a
    label belongs to is said by ``outputs``. Without it, as many labels as there are outputs belong to them in sorted order; fewer
    have to be the outputs' positions, ``0..c-1``. Like any scikit-learn classifier it predicts only labels that it was fitted on.

    Args:
        network: the base, a trained ``nn.Module`` on ``(n, features)`` float inputs; it is never changed.
        worst: how many of the least accurate classes are targets, unless
        targets: names them, by label.
        outputs: ``(c,)`` the label of each of the network's outputs, in their order; None: see above.
        method: see :class:`tweaknn.SynapticJoin`, as for the following.
        promise: which rule the other classes are under.
        tolerance: what that rule may give up, a fraction.
        seed: of everything random.

    Attributes:
        delta_: the delta, or None.
        result_: the join's result.
        classes_: ``(k,)`` the labels seen in ``fit``, sorted.
        output_indices_: ``(k,)`` the output of the network that each of them is.
    """

    def __init__(
        self,
        network: nn.Module | None = None,
        worst: int = 1,
        targets: list[Any] | None = None,
        outputs: Sequence[Any] | None = None,
        method: str = "fit",
        promise: str | None = None,
        tolerance: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.network = network
        self.worst = worst
        self.targets = targets
        self.outputs = outputs
        self.method = method
        self.promise = promise
        self.tolerance = tolerance
        self.seed = seed

    def __sklearn_tags__(self) -> Any:
        """How good it is depends on the network it is given, which scikit-learn's checks cannot know."""
        tags = super().__sklearn_tags__()
        tags.classifier_tags.poor_score = True
        return tags

    def fit(self, X: Any, y: Any) -> MendedClassifier:
        """Mend on ``X`` ``(n, features)``, labels ``y`` ``(n,)``.

        Raises:
            InputError: no network, labels that fit no output, or a target that is no label. It is a ValueError.
        """
        from tweaknn.join.run import SynapticJoin

        if self.network is None:
            raise InputError("MendedClassifier needs a trained network: MendedClassifier(network=net).")
        X, y = validate_data(self, X, y, dtype=np.float32, allow_nd=True, ensure_min_samples=2)
        check_classification_targets(y)
        self.classes_, encoded = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise InputError(f"There is one class only in y ({self.classes_[0]!r}); two classes are needed.")
        self._base = self.network
        if self._single(self.network, X[:2]):
            from tweaknn.network.adapt import TwoLogits

            self._base = TwoLogits(self.network)
        outputs = self._logits(X[:2]).shape[1]
        self.output_indices_ = self._positions(outputs)
        labels = self.output_indices_[encoded].astype(np.int64)
        data = TensorDataset(torch.tensor(X), torch.from_numpy(labels))
        join = SynapticJoin(method=self.method, promise=self.promise, tolerance=self.tolerance, seed=self.seed)
        chosen: dict[str, Any] = {"worst": self.worst}
        if self.targets is not None:
            chosen = {"targets": [self._position(target) for target in self.targets]}
        self.result_ = join.fit(self._base, DataLoader(data, batch_size=128), **chosen)
        self.delta_ = self.result_.delta
        if self.delta_ is not None:
            self._base = self.delta_.attach(self._base)
        return self

    def _positions(self, outputs: int) -> np.ndarray:
        """``(k,)`` the output of each of ``classes_``."""
        found = self.classes_
        if self.outputs is not None:
            names = list(self.outputs)
            if len(names) != outputs or len(set(names)) != outputs:
                raise InputError(
                    f"outputs names {len(set(names))} different labels; the network has {outputs} outputs."
                )
            unknown = [label for label in found.tolist() if label not in names]
            if unknown:
                raise InputError(
                    f"The label {unknown[0]!r} is none of the network's outputs: {', '.join(map(str, names))}."
                )
            return np.array([names.index(label) for label in found.tolist()], dtype=np.int64)
        if len(found) == outputs:
            return np.arange(outputs)
        whole = found.dtype.kind in "iuf" and bool((found == np.floor(found)).all())
        if len(found) > outputs or not whole or found.min() < 0 or found.max() >= outputs:
            raise InputError(
                f"y has {len(found)} classes ({', '.join(map(str, found[:3].tolist()))}, ...), the network {outputs} outputs; "
                "say which label each output is: outputs=[...]."
            )
        return found.astype(np.int64)

    def _position(self, label: Any) -> int:
        at = np.flatnonzero(self.classes_ == label)
        if not len(at):
            raise InputError(f"The target {label!r} is no label of y: {', '.join(map(str, self.classes_.tolist()))}.")
        return int(self.output_indices_[at[0]])

    @staticmethod
    def _single(network: Any, X: np.ndarray) -> bool:
        """Whether the network gives one logit an example."""
        from tweaknn.network.modes import call, eval_mode, output_of, placement, to_model

        with eval_mode(network), torch.inference_mode():
            shape = output_of(call(network, to_model(torch.tensor(X), *placement(network)))).shape
        return len(shape) == 1 or shape[1:] == (1,)

    def _logits(self, X: np.ndarray) -> np.ndarray:
        """``(n, c)`` logits of the network, with the delta where there is one."""
        from tweaknn.network.modes import call, eval_mode, logits_of, placement, to_model

        where = placement(self._base)
        with eval_mode(self._base), torch.inference_mode():
            parts = (to_model(part, *where) for part in torch.tensor(X).split(256))
            rows = [logits_of(call(self._base, part)).float().cpu().numpy() for part in parts]
        return np.concatenate(rows)

    def _seen(self, X: Any) -> np.ndarray:
        """``(n, k)`` logits of the labels in ``classes_``."""
        check_is_fitted(self, "result_")
        X = validate_data(self, X, dtype=np.float32, allow_nd=True, reset=False)
        return self._logits(X)[:, self.output_indices_]

    def decision_function(self, X: Any) -> np.ndarray:
        """Logits of ``X`` ``(n, features)``: ``(n, k)`` for the labels in ``classes_``; of two classes ``(n,)``, the second's less the
        first's, as scikit-learn has it."""
        logits = self._seen(X)
        return logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits

    def predict_proba(self, X: Any) -> np.ndarray:
        """Softmax of the logits of ``X`` ``(n, features)``, ``(n, k)`` for the labels in ``classes_``."""
        return torch.from_numpy(self._seen(X)).softmax(1).numpy()

    def predict(self, X: Any) -> np.ndarray:
        """Labels ``(n,)`` of ``X`` ``(n, features)``, as they were given to :meth:`fit`."""
        best = self._seen(X).argmax(1)
        return self.classes_[best]
