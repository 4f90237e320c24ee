"""How ranks that start together find each other in a store that outlives them.

torchrun keeps one store over its restarts, and in it lie the addresses of processes that have
died; PyTorch would connect to those. Nor do the hosts count restarts alike: one may see its own
process fail where another only hears of it. So the ranks of a start agree upon a name first.
"""

from __future__ import annotations

import datetime
import time
import uuid

from torch.distributed import DistError, PrefixStore, Store  # type: ignore[attr-defined]

_LOOK_S = 0.02


def meet(store: Store, rank: int, ranks: int, timeout_s: float) -> Store:
    """``store``, under a name that only this start of its ``ranks`` processes knows.

    Each rank says a word that nobody said before; rank 0 answers every such word with the
    name, and goes on when all have heard it. DistError after ``timeout_s``.
    """
    word = uuid.uuid4().hex
    if rank > 0:
        store.set(f"hello/{rank}", word)
        store.wait([f"welcome/{word}"], datetime.timedelta(seconds=timeout_s))
        name = store.get(f"welcome/{word}").decode()
        store.set(f"heard/{name}/{rank}", "yes")
        return PrefixStore(name, store)
    deadline = time.monotonic() + timeout_s
    answered: dict[int, bytes] = {}
    missing = set(range(1, ranks))
    while missing:
        for other in sorted(missing):
            if store.check([f"heard/{word}/{other}"]):
                missing.discard(other)
            elif store.check([f"hello/{other}"]):
                said = store.get(f"hello/{other}")
                if said != answered.get(other):  # the word of an earlier start does no harm
                    answered[other] = said
                    store.set(f"welcome/{said.decode()}", word)
        if missing and time.monotonic() > deadline:
            raise DistError(f"timed out waiting for {len(missing)} of {ranks} ranks")
        time.sleep(_LOOK_S if missing else 0)
    return PrefixStore(word, store)
