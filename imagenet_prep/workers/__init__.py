"""Parallel work: processes of this machine, Dask and Ray clusters.

The public face: ``processes`` (``Workers``, ``Jobs``, ``workers_of``, ``Failed``) and
``cluster.open_workers``; threads are in ``core.threads``.
"""
