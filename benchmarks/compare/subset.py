"""A smaller Parquet file with each class in its share, so that a table of 21 methods can be made on two cores.

python -m benchmarks.compare.subset IN.parquet OUT.parquet --take 10000 [--seed 0]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from tweaknn.baselines.task import stratified


def main() -> None:
    """Write the subset; schema metadata (class names) is kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--take", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    whole = pq.read_table(given.source)
    rows = stratified(np.asarray(whole["label"]), given.take, given.seed)
    pq.write_table(whole.take(rows), given.out)
    print(f"{len(rows):,} of {whole.num_rows:,} rows: {given.out}")


if __name__ == "__main__":
    main()
