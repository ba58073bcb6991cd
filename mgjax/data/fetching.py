"""Fetches the shards of corpora in buckets into the local cache, in the background, ahead of their first reader."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from mgjax.data.corpus import Pieces
from mgjax.storage import cache, paths
from mgjax.storage.paths import Path

log = logging.getLogger("mgjax")

_THREADS = 4  # a connection of its own each, as one does not fill the network of a host
_LOOKED_AHEAD = 1_000_000  # examples, within which nearly all shards occur


class FetchAhead:
    """Fetches the shards that `upcoming`, the indices of pieces, will need, in that order, until it is closed.

    No more are fetched than may be open at once (`mgjax.data.records.Readers`). What cannot be fetched is left to the
    reader, which raises the error.
    """

    def __init__(self, pieces: Pieces, upcoming: Iterable[int]):
        self._closed = threading.Event()
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="fetch")
        self._thread = threading.Thread(target=self._run, args=(pieces, upcoming), daemon=True)
        self._thread.start()

    @staticmethod
    def is_needed(pieces: Pieces) -> bool:
        """Whether any of the corpora is in a bucket."""
        return any(paths.is_remote(corpus.directory) for corpus in pieces.corpora)

    def close(self) -> None:
        """Stops; what is being fetched at this moment is fetched."""
        self._closed.set()
        self._thread.join()
        self._pool.shutdown(cancel_futures=True)

    def _run(self, pieces: Pieces, upcoming: Iterable[int]) -> None:
        room, seen = cache.capacity() / 2, set[Path]()
        remaining = pieces.num_shards()
        for count, piece in enumerate(upcoming):
            if self._closed.is_set() or not remaining or count == _LOOKED_AHEAD:
                return
            path, num_bytes = pieces.shard(piece)
            if path in seen:
                continue
            seen.add(path)
            remaining -= 1
            if paths.is_remote(path):
                room -= num_bytes
                if room < 0:
                    log.warning(
                        "the corpora are larger than half of the cache in %s: shards are fetched again and again. Give "
                        "it more (MGJAX_BUCKET_CACHE_GB), or read them from a mounted bucket",
                        cache.root(),
                    )
                    return
                self._pool.submit(self._fetch, path)

    def _fetch(self, path: Path) -> None:
        if self._closed.is_set():
            return
        try:
            cache.fetch(path)
        except OSError as error:
            log.warning("%s could not be fetched ahead (%s)", path, error)
