"""Data, networks and methods of the pruning benchmark."""
