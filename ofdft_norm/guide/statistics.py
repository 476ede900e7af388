"""References and statistics: what is fitted, kept, and printed.

.. include:: statistics.md
"""
