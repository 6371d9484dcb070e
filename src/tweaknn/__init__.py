"""Edit trained classifiers: mend the classes that matter, prune what is not needed."""

__version__ = "0.1.0.dev0"
