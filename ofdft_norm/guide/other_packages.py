"""Coming from other packages.

.. include:: other_packages.md
"""
