"""Many labels, many runs, many nodes.

.. include:: large_scale.md
"""
