"""Parallel work: threads and processes of this machine, Dask and Ray clusters.

The public face: ``processes`` (``Workers``, ``Jobs``, ``workers_of``, ``Failed``),
``threads.map_in_threads`` and ``cluster.open_workers``.
"""
