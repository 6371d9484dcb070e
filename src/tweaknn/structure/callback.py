"""Complexity-aware training as a Lightning callback (``pip install lightning``)."""

from __future__ import annotations

from typing import Any

from ..errors import ModelError
from .pruner import ComplexityAware


def pruning_callback(example: Any, module: str | None = None, **options: Any) -> Any:
    """A Lightning callback that prunes ``pl_module`` (or its attribute ``module``) while it trains.

    ``example`` is a batch the network runs on; ``options`` are those of :class:`ComplexityAware`; ``steps`` is taken
    from the trainer. After ``fit`` the compact network is in place and the pruner in ``callback.pruner``. Checkpoints
    hold the gates' state, so that a run resumed from one goes on exactly.

    Raises:
        ModelError: Lightning is not installed.
    """
    try:
        from lightning.pytorch import Callback
    except ImportError:
        try:
            from pytorch_lightning import Callback  # type: ignore[no-redef,assignment]
        except ImportError:
            raise ModelError("the callback needs Lightning: pip install lightning") from None

    class PruneCallback(Callback):
        def __init__(self) -> None:
            self.pruner: ComplexityAware | None = None
            self._saved: dict[str, Any] | None = None

        def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
            # A checkpoint's weights are restored after this hook: the network must have their shapes by then.
            if stage == "fit" and self.pruner is None and self._saved is not None:
                self._make(trainer, pl_module, [])

        def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
            if self.pruner is None:
                self._make(trainer, pl_module, trainer.optimizers)
            else:
                self.pruner.optimizers = list(trainer.optimizers)

        def _make(self, trainer: Any, pl_module: Any, optimizers: list[Any]) -> None:
            network = pl_module if module is None else getattr(pl_module, module)
            steps = int(options.pop("steps", 0) or trainer.estimated_stepping_batches)
            self.pruner = ComplexityAware(network, example, optimizers, steps=steps, **options)
            if self._saved is not None:
                self.pruner.load_state_dict(self._saved)
                self._saved = None

        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            assert self.pruner is not None
            if self.pruner.state.step < trainer.global_step:  # not while gradients are being accumulated
                self.pruner.step()

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            assert self.pruner is not None
            self.pruner.compact()

        def state_dict(self) -> dict[str, Any]:
            return self.pruner.state_dict() if self.pruner is not None else {}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self._saved = state or None

    return PruneCallback()
