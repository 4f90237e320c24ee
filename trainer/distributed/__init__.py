"""Several processes: ranks, rendezvous, gradients."""
