"""Weights of synapses, fitted on table T."""
