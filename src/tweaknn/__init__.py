"""Edit trained classifiers: mend the classes that matter, prune what is not needed.

join = SynapticJoin().fit(model, train_loader, validation_loader, targets=["melanoma"])
join.delta.save("melanoma.delta.safetensors")
better = Delta.load("melanoma.delta.safetensors").attach(model)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0.dev0"

_WHERE = {
    "Comparison": "tweaknn.join.comparison",
    "Delta": "tweaknn.delta",
    "Diagnosis": "tweaknn.join.diagnosis",
    "JoinResult": "tweaknn.join.result",
    "Promise": "tweaknn.join.promise",
    "SynapticJoin": "tweaknn.join.run",
    "TweaknnError": "tweaknn.errors",
    "compare_logits": "tweaknn.join.comparison",
    "diagnose": "tweaknn.join.diagnosis",
    "fingerprint": "tweaknn.network",
    "load_data": "tweaknn.inputs",
    "load_model": "tweaknn.inputs",
}

if TYPE_CHECKING:
    from tweaknn.delta import Delta
    from tweaknn.errors import TweaknnError
    from tweaknn.inputs import load_data, load_model
    from tweaknn.join.comparison import Comparison, compare_logits
    from tweaknn.join.diagnosis import Diagnosis, diagnose
    from tweaknn.join.promise import Promise
    from tweaknn.join.result import JoinResult
    from tweaknn.join.run import SynapticJoin
    from tweaknn.network import fingerprint

__all__ = [
    "Comparison",
    "Delta",
    "Diagnosis",
    "JoinResult",
    "Promise",
    "SynapticJoin",
    "TweaknnError",
    "__version__",
    "compare_logits",
    "diagnose",
    "fingerprint",
    "load_data",
    "load_model",
]


def __getattr__(name: str) -> Any:
    # imported when first used: the command line should answer --help without loading torch
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'tweaknn' has no attribute {name!r}")
