"""The source model as an adapter takes it over: checks, copies that share frozen weights, outputs, fingerprint."""
