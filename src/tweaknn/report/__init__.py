"""Pictures and the one-file page."""
