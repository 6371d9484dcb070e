"""Figures of merit; knows nothing of the rest."""
