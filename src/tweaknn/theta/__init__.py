"""Algorithm θ of the synaptic join as exact, mergeable statistics over a stream of neuron values."""
