"""The papers' experiments on ReLU networks; the methods know nothing of them.

Four folders are the experiments of ``iresflow relu``, each with its settings in a file beside it:
preimage, stability, frames and inversion. Each of them has, from its ``experiment.py``,

- ``Settings``, a keyword-only dataclass of what a person can set, ``seed`` among it,
- ``DATA``, for each section of the configuration that names a data set, its default fields, such
  as ``{"mnist": {"name": "mnist"}}``,
- ``quick(settings)``, the settings cut down to a run within a minute,
- ``run(settings, data, report)``, where ``data`` holds `Samples` under the names of ``DATA``.
"""
