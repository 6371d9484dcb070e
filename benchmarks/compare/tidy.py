"""Make results of ``tweaknn compare`` fit to be kept: files by their last two names, whatever machine they lay on, and no indentation.

python -m benchmarks.compare.tidy RESULT.json [RESULT.json ...]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def tidied(value: Any) -> Any:
    """The same with every absolute path shortened."""
    if isinstance(value, dict):
        return {key: tidied(item) for key, item in value.items()}
    if isinstance(value, list):
        return [tidied(item) for item in value]
    if isinstance(value, str) and Path(value).is_absolute():
        return "/".join(Path(value).parts[-2:])
    return value


def main() -> None:
    """Rewrite each file."""
    for name in sys.argv[1:]:
        path = Path(name)
        path.write_text(json.dumps(tidied(json.loads(path.read_text())), separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
