"""From statistics to chosen synapses and an operating point."""
