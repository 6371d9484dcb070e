"""``python -m tweaknn.cli``."""

from tweaknn.cli.app import main

main()
