"""What is measured of a classifier's outputs: plain numpy in, plain numbers out; knows nothing of
networks."""

from tweaknn.measure.accuracy import (
    Measures,
    confusion_matrix,
    expected_calibration_error,
    log_softmax,
    measure,
    negative_log_likelihood,
    per_class_accuracy,
    strongest_confusions,
    tempered_log_loss,
)
from tweaknn.measure.checks import check_labels, check_logits
from tweaknn.measure.harm import error_e, worst_drop
from tweaknn.measure.labels import label_measures
from tweaknn.measure.pareto import pareto_front, shift_front, shifted_accuracy, target_gaps
from tweaknn.measure.ranking import auroc_binary, auroc_by_class, class_scores, sensitivity_at_specificity
from tweaknn.measure.uncertainty import combined, holm, mcnemar, paired_difference, wilson

__all__ = [
    "Measures",
    "auroc_binary",
    "auroc_by_class",
    "check_labels",
    "check_logits",
    "class_scores",
    "combined",
    "confusion_matrix",
    "error_e",
    "expected_calibration_error",
    "holm",
    "label_measures",
    "log_softmax",
    "mcnemar",
    "measure",
    "negative_log_likelihood",
    "paired_difference",
    "pareto_front",
    "per_class_accuracy",
    "sensitivity_at_specificity",
    "shift_front",
    "shifted_accuracy",
    "strongest_confusions",
    "target_gaps",
    "tempered_log_loss",
    "wilson",
    "worst_drop",
]
