#!/usr/bin/env sh
# All checks: lint, types, tests. Options go to pytest.
set -eu
cd "$(dirname "$0")/.."
ruff check .
mypy
# one thread each: two workers of two threads would get into each other's way
OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} exec python -m pytest -p no:cacheprovider -n auto "$@"
