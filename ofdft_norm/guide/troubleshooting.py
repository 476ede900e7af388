"""The ten errors most met, and what to do.

.. include:: troubleshooting.md
"""
