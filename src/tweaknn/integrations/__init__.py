"""The habits of other libraries: Lightning callbacks, scikit-learn estimators, torchmetrics."""

from tweaknn.integrations.estimator import MendedClassifier
from tweaknn.integrations.lightning import diagnosis_callback
from tweaknn.integrations.metrics import per_class_metrics

__all__ = ["MendedClassifier", "diagnosis_callback", "per_class_metrics"]
