"""numba's compiled code on disk: made anew when any source that it may be made of has changed.

numba itself looks only at the file of the outermost function, and gives a process another type's
code after two processes have compiled one function for different types at the same time.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import pickle
import re
import zlib
from pathlib import Path
from typing import Any

_DIGEST_BYTES = hashlib.sha256().digest_size
_ROOT = Path(__file__).resolve().parents[2]
_IMPORT = re.compile(
    r"^ *from ((?:imagenet_prep|trainer)[.\w]*) import (\([^)]*\)|.*)", re.MULTILINE
)


def kept(dispatcher: Any) -> Any:
    """A function of numba or a kernel of numba-cuda -> the same, kept on disk; not where no folder
    for that can be written, or where it is interpreted (NUMBA_DISABLE_JIT, the CUDA simulator)."""
    if hasattr(dispatcher, "enable_caching"):
        with contextlib.suppress(RuntimeError):  # no folder can be written
            dispatcher.enable_caching()
            cache = dispatcher._cache
            path = Path(dispatcher.py_func.__code__.co_filename).resolve()
            cache._cache_file = _Entries(cache._cache_file, _source(path))
    return dispatcher


class _Entries:
    """One file for the code of each type, in numba's folder and by its functions; numba has an
    index of the files instead, which two processes may write at the same time."""

    def __init__(self, files: Any, source: str) -> None:
        self._files, self._source = files, source

    def load(self, key: Any) -> Any:
        """The code for a key of numba's; None if none of this source is there, or it is damaged."""
        try:
            data = self._path(key).read_bytes()
        except OSError:
            return None
        digest, code = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
        return pickle.loads(code) if digest == self._digest(key, code) else None

    def save(self, key: Any, code: Any) -> None:
        """Keeps the code; not where the disk is full: then it is compiled again next time."""
        code = self._files._dump(code)
        with contextlib.suppress(OSError), self._files._open_for_write(self._path(key)) as file:
            file.write(self._digest(key, code) + code)

    def _path(self, key: Any) -> Path:
        name = self._files._data_name(zlib.crc32(repr(key).encode()))
        return Path(self._files._data_path(name))

    def _digest(self, key: Any, code: bytes) -> bytes:
        return hashlib.sha256(f"{self._source} {key!r}".encode() + code).digest()


@functools.cache
def _source(path: Path) -> str:
    """The digest of a module and of all that it imports from this project, and numba's version."""
    import numba

    modules: dict[Path, bytes] = {}
    waiting = [path]
    while waiting:
        path = waiting.pop()
        if path in modules or not path.is_file():
            continue
        modules[path] = path.read_bytes()
        for package, names in _IMPORT.findall(modules[path].decode()):
            folder = _ROOT / package.replace(".", "/")
            waiting += [folder.with_suffix(".py"), folder / "__init__.py"]
            waiting += [folder / f"{name}.py" for name in re.findall(r"\w+", names)]
    digest = hashlib.sha256(numba.__version__.encode())
    for module in sorted(modules):
        digest.update(hashlib.sha256(modules[module]).digest())
    return digest.hexdigest()
