"""S4T and the methods of test-time training it is compared with: tables and figures on rendered houses.

The source models of a table are trained on houses of one style; learning rates are chosen on a validation shift of other
houses; targets are houses of a further style. :mod:`listing` names the experiments, :mod:`studies` holds the tables and their
rows, :mod:`analyses` what is measured on the trained networks, :mod:`planning` how a run is planned, :mod:`units` the work; the
data are :mod:`testtime.multitask.houses`.
"""
