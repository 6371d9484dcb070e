"""A Lightning callback that diagnoses the network after each validation epoch."""

from __future__ import annotations

from typing import Any

import numpy as np

from tweaknn.errors import ModelError


def diagnosis_callback(
    loader: Any = None, *, module: str | None = None, classes: list[str] | None = None, worst: int = 3
) -> Any:
    """A callback that logs ``accuracy/CLASS``, ``accuracy/overall``, ``accuracy/balanced`` and ``accuracy/worst``.

    Args:
        loader: labelled batches; the trainer's first validation loader when None.
        module: attribute of the Lightning module that is the classifier; the module itself when None.
        classes: names of the logits.
        worst: how many of the worst classes :attr:`history` keeps for each epoch.

    After training, ``callback.history`` holds a dictionary an epoch.

    Raises:
        ModelError: Lightning is not installed.
    """
    try:
        from lightning.pytorch import Callback
    except ImportError:
        try:
            from pytorch_lightning import Callback  # type: ignore[no-redef,assignment]
        except ImportError:
            raise ModelError("The callback needs Lightning: pip install 'tweaknn[lightning]'.") from None

    from tweaknn.measure import measure
    from tweaknn.network.outputs import collect_logits

    class DiagnosisCallback(Callback):
        def __init__(self) -> None:
            self.history: list[dict[str, Any]] = []

        def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            if trainer.sanity_checking:
                return
            batches = loader if loader is not None else trainer.val_dataloaders
            batches = batches[0] if isinstance(batches, (list, tuple)) else batches
            net = getattr(pl_module, module) if module else pl_module
            logits, labels = collect_logits(net, ((batch[0], batch[1]) for batch in batches))
            each = np.asarray(measure(logits, labels).per_class, dtype=float)
            names = classes or [str(j) for j in range(len(each))]
            order = [int(j) for j in np.argsort(each) if not np.isnan(each[j])]
            found = {f"accuracy/{name}": float(a) for name, a in zip(names, each, strict=True) if not np.isnan(a)}
            found["accuracy/overall"] = float((logits.argmax(1) == labels).mean())
            found["accuracy/balanced"] = float(np.nanmean(each))
            found["accuracy/worst"] = float(np.nanmin(each))
            self.history.append({"epoch": trainer.current_epoch, "worst": [names[j] for j in order[:worst]], **found})
            pl_module.log_dict(found)

    return DiagnosisCallback()
