"""What is in which unit.

.. include:: units.md
"""
