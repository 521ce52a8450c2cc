"""The family "online": adaptation to the next batch. Tables and sweeps of the papers, and ours on data that is at hand.

- ``experiments.toml`` and ``published.toml`` hold the experiments and the figures of the papers; :mod:`.listing` reads them.
- :mod:`.sets` finds data sets, corruptions and source models; :mod:`.stream` builds the stream of a cell.
- :mod:`.cell` runs a method on a stream (:mod:`.prequential`), with checkpoints (:mod:`.checkpoint`); :mod:`.baseline` measures
  the plain forward that times are related to.
- :mod:`.experiment` plans the units; :mod:`.results` reads a run, :mod:`.pages` and :mod:`.words` show it, :mod:`.comparison`
  shows several.
- :mod:`.no_labels` runs candidates in shadow on a stream without labels and recommends one.
"""
