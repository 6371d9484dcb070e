"""Δnn as a value and as a file."""
