"""Name the neurons of any network, read them in one stream, attach and detach a Δnn, fingerprint a base."""
