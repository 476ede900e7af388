"""Density labels of your own.

.. include:: density_labels.md
"""
