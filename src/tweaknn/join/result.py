"""What a join found, in order and in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tweaknn.delta import Delta
from tweaknn.errors import NothingHelps
from tweaknn.join.candidates import CONTROLS
from tweaknn.join.certify import Certificate, certify
from tweaknn.join.choice import as_good, ordered
from tweaknn.join.front import front
from tweaknn.join.promise import Promise
from tweaknn.join.setting import Candidate, Setting
from tweaknn.join.size import WORK, share_of
from tweaknn.join.table import PooledTable
from tweaknn.measure import mcnemar
from tweaknn.measure.drift import fingerprint as looks
from tweaknn.writing import plain


@dataclass(frozen=True, eq=False)
class JoinResult:
    """What a join found.

    Attributes:
        delta: the chosen candidate's, metadata filled in; None when nothing helps.
        chosen: its name, or None.
        candidates: the method and the controls, best first.
        targets, classes: names.
        warnings: sentences a user should read before trusting the result.
        sentence: what improved and at whose cost, in one sentence.
        rivals: names of the controls that do as well for the targets within noise (:func:`~tweaknn.join.choice.as_good`), where
            something helps and it is not itself a control.
        certificate: of the promise on new data, where a confidence was asked for.
        front: operating points of the best candidate, from none of the change to the most of it, see
            :func:`tweaknn.join.front.front`.
        drift: what the examples chosen on looked like, see :func:`tweaknn.measure.drift.compare`.
    """

    delta: Delta | None
    chosen: str | None
    candidates: list[Candidate]
    targets: list[str]
    classes: list[str]
    promise: Promise
    warnings: list[str]
    sentence: str
    settings: dict[str, Any]
    rivals: list[str] = field(default_factory=list)
    certificate: Certificate | None = None
    front: list[dict[str, Any]] = field(default_factory=list)
    drift: dict[str, Any] = field(default_factory=dict)

    @property
    def best(self) -> Candidate:
        """The candidate that was handed over, or would have been."""
        return self.candidates[0]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: ``chosen``, ``candidates`` (name -> validation figures), base figures, warnings, settings."""
        base = self.best.comparison.base
        candidates = {candidate.name: candidate.figures() for candidate in self.candidates}
        candidates[self.best.name]["front"] = self.front
        return {
            "chosen": self.chosen,
            "sentence": self.sentence,
            "targets": self.targets,
            "classes": self.classes,
            "promise": self.promise.to_dict(),
            "n_validation": base.n,
            "base": {**base.to_dict(self.classes), "target": self.best.point.base_target},
            "candidates": candidates,
            "controls": list(CONTROLS),
            "controls_as_good": self.rivals,
            "warnings": self.warnings,
            "settings": self.settings,
            **({"certificate": self.certificate.to_dict()} if self.certificate is not None else {}),
            "drift": self.drift,
        }

    def require(self) -> Delta:
        """The delta. Raises NothingHelps when there is none."""
        if self.delta is None:
            raise NothingHelps(self.sentence)
        return self.delta


def conclude(
    candidates: list[Candidate],
    setting: Setting,
    warnings: list[str],
    settings: dict[str, Any],
    held: tuple[PooledTable, dict[str, Any]] | None = None,
    confidence: float | None = None,
) -> JoinResult:
    """Order candidates by what they do for the targets on validation and hand over the best, if it helps and, where a
    ``confidence`` is asked for, as far as the examples ``held`` back for that (with their masks) certify it."""
    ranked = ordered(candidates, setting)
    best = ranked[0]
    helps = best.point.feasible and best.point.value > best.point.base_value + 1e-12
    certificate = None
    if helps and held is not None and confidence is not None:
        certified, certificate = certify(setting, best, *held, confidence)
        if certified is not None:
            ranked[0] = best = certified
    rows = setting.target_rows
    labels = setting.validation.labels[rows]
    p = mcnemar(setting.validation.logits[rows].argmax(1) == labels, best.logits[rows].argmax(1) == labels)
    if helps and p > 0.05:
        warnings = [
            *warnings,
            f"the gain on the targets may be chance (p = {p:.2f} on {len(labels)} validation examples)",
        ]
    less = float(best.notes.get("caution", setting.caution))
    if helps and certificate is None and less < setting.caution:
        warnings = [
            *warnings,
            f"the promise is kept by {less:g} standard errors only, not by {setting.caution:g}: validation leaves no room for more",
        ]
    share = share_of(best.delta, setting.work)
    if helps and share is not None and share > WORK:
        warnings = [
            *warnings,
            f"the delta's arithmetic is {share:.0%} of its base's, so an attached network may well take more than 1.10 of its base's "
            "time; `tweaknn evaluate --latency` measures it, --method fit makes a smaller delta",
        ]
    rivals = []
    if helps and best.name not in CONTROLS:
        rivals = [c for c in ranked if c.name in CONTROLS and c.point.feasible and as_good(c, best, setting)]
    said = sentence(best, setting.names, helps, rivals)
    if certificate is not None:
        said = f"{said} {certificate.sentence}" if certificate.held else f"{certificate.sentence} No file was written."
        helps = certificate.held
    result = JoinResult(
        delta=None,
        chosen=best.name if helps else None,
        candidates=ranked,
        targets=setting.names,
        classes=setting.classes,
        promise=setting.promise,
        warnings=warnings,
        sentence=said,
        settings={**settings, "p_value_targets": p, "arithmetic": share},
        rivals=[c.name for c in rivals] if helps else [],
        certificate=certificate,
        front=front(setting, best),
        drift=looks(setting.validation.logits, None if "folds" in best.notes else best.logits),
    )
    if not helps:
        return result
    return replace(result, delta=replace(best.delta, meta=plain(result.to_dict())))


WORDS = {"bias": "a constant bias", "random-neurons": "neurons drawn by lot", "last-layer": "the last layer alone"}
"""The controls as a sentence names them."""


def sentence(best: Candidate, targets: list[str], helps: bool, rivals: Sequence[Candidate] = ()) -> str:
    """What improved and at whose cost, and which controls do as well for the targets (``rivals``) within noise."""
    who = ", ".join(targets)
    point, c = best.point, best.comparison
    if not helps:
        why = f": {point.reason.removesuffix('.')}" if point.reason else ""
        return f"Nothing found improves {who} on validation while keeping the promise{why}; no file was written."
    gain = 100 * (point.target - point.base_target)
    cost = "no class loses" if c.worst_drop >= 0 else f"{c.worst_class} loses {-100 * c.worst_drop:.1f} points"
    overall = 100 * (c.tweaked.overall - c.base.overall)
    said = (
        f"On validation {who} gain{'s' if len(targets) == 1 else ''} {gain:.1f} points "
        f"({100 * point.base_target:.1f} → {100 * point.target:.1f} %), overall {overall:+.1f}, {cost}."
    )
    if best.name == "bias":
        said += " This is a mere constant on the logits: no synapse did better."
    elif best.name in CONTROLS:
        said += f" This is a control ({best.name}): the method itself did not do better."
    elif rivals:
        names = [f"{WORDS.get(c.name, c.name)} ({100 * (c.point.target - c.point.base_target):+.1f})" for c in rivals]
        listed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
        said += f" For the target{'s' if len(targets) > 1 else ''} alone {listed} would do as well within noise."
    return said
