"""Algorithm 1 as exact, mergeable statistics over a stream."""
