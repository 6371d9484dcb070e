"""Where shards run: in this process (nothing needed), or on a Ray cluster."""
