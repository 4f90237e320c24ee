"""How ranks that start together find each other in a store that outlives them.

torchrun keeps one store over its restarts, with the addresses of processes that have died; PyTorch
would connect to those. The hosts also count restarts differently: one may see its own process fail
where another only hears of it. So the ranks of a start agree on a new prefix first.
"""

from __future__ import annotations

import datetime
import time
import uuid

from torch.distributed import DistError, PrefixStore, Store  # type: ignore[attr-defined]

_LOOK_S = 0.02


def meet(store: Store, rank: int, ranks: int, timeout_s: float) -> Store:
    """``store``, under a prefix of this start of its ``ranks`` processes alone.

    Each rank publishes a unique token; rank 0 answers every token with the prefix, and returns
    when all have confirmed it. DistError after ``timeout_s``.
    """
    token = uuid.uuid4().hex
    if rank > 0:
        store.set(f"hello/{rank}", token)
        store.wait([f"welcome/{token}"], datetime.timedelta(seconds=timeout_s))
        name = store.get(f"welcome/{token}").decode()
        store.set(f"heard/{name}/{rank}", "yes")
        return PrefixStore(name, store)
    deadline = time.monotonic() + timeout_s
    answered: dict[int, bytes] = {}
    missing = set(range(1, ranks))
    while missing:
        for other in sorted(missing):
            if store.check([f"heard/{token}/{other}"]):
                missing.discard(other)
            elif store.check([f"hello/{other}"]):
                seen = store.get(f"hello/{other}")
                if seen != answered.get(other):  # a token of an earlier start is harmless
                    answered[other] = seen
                    store.set(f"welcome/{seen.decode()}", token)
        if missing and time.monotonic() > deadline:
            raise DistError(f"timed out waiting for {len(missing)} of {ranks} ranks")
        time.sleep(_LOOK_S if missing else 0)
    return PrefixStore(token, store)
