"""Tables and figures of TST-MM (test-space training): what a model is worth that was pre-trained on the place it works in.

:mod:`.analyses` lists the variants of every table, :mod:`.presets` the sizes of an experiment, :mod:`.planning` makes units of
work out of them, :mod:`.units` and :mod:`.measures` are the functions of the units.
"""
