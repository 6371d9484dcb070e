#!/usr/bin/env sh
# All checks: lint, types, tests. Options go to pytest.
set -eu
cd "$(dirname "$0")/.."
ruff check .
mypy
exec python -m pytest -p no:cacheprovider "$@"
