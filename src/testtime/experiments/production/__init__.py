"""The family "production": streams that break adapters, poisoned batches, and a long run, with and without a guard.

- :mod:`.world` builds the streams and adapters of a unit; :mod:`.following` runs one on the other, with checkpoints.
- :mod:`.experiment` plans the units and reads the tables.
"""
