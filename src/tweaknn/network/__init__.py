"""Name the neurons of any network, read them in one stream, attach and detach a Δnn, fingerprint a base."""

from tweaknn.network.fingerprint import fingerprint
from tweaknn.network.layers import Layer
from tweaknn.network.pooling import pool
from tweaknn.network.reader import Reader

__all__ = ["Layer", "Reader", "fingerprint", "pool"]
