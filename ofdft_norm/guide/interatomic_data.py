"""Interatomic data of your own.

.. include:: interatomic_data.md
"""
