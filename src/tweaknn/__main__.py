"""``python -m tweaknn``."""

from tweaknn.cli.app import main

main()
