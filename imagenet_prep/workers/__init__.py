"""One interface to local processes and threads, Dask and Ray."""
