"""A bucket for tests: moto's server, with a server of our own before it that spoils its answers."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from imagenet_prep.crop.run import CropReport, run_crop
from imagenet_prep.dataset.crop_settings import CropSettings
from imagenet_prep.dataset.names import JOURNAL_NAME
from imagenet_prep.storage.location import Url, location_of
from tests.kit.journal import journal_rows
from tests.kit.remote import SECRETS, Spoiler, files_of, passed_on

SMALL = CropSettings(size=16)
BUCKET = "images"


@dataclasses.dataclass
class Store:
    """A bucket, and the server before it."""

    spoiler: Spoiler
    plain: Any  # a client that does not pass it

    def put(self, folder: Path, name: str = "raw") -> Url:
        """Uploads a folder -> its URL."""
        for path, data in files_of(folder).items():
            self.plain.put_object(Bucket=BUCKET, Key=f"{name}/{path}", Body=data)
        url = location_of(f"s3://{BUCKET}/{name}")
        assert isinstance(url, Url)
        return url

    def remove(self, name: str) -> None:
        self.plain.delete_object(Bucket=BUCKET, Key=name)


@contextlib.contextmanager
def serving() -> Iterator[Store]:
    """A store on this machine, which the environment names while the block lasts."""
    import boto3
    from moto.server import ThreadedMotoServer
    from s3fs import S3FileSystem

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    moto = ThreadedMotoServer("127.0.0.1", 0)
    moto.start()
    host, port = moto.get_host_and_port()
    spoiler = Spoiler(passed_on(host, port))
    environment = {
        "AWS_ENDPOINT_URL": spoiler.url,
        "AWS_ACCESS_KEY_ID": "the-id",
        "AWS_SECRET_ACCESS_KEY": SECRETS[0],
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
        "IMAGENET_PREP_REMOTE_PAUSE_S": "0.001",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        S3FileSystem.clear_instance_cache()
        try:
            yield Store(spoiler, boto3.client("s3", endpoint_url=f"http://{host}:{port}"))
        finally:
            spoiler.close()
            moto.stop()
            S3FileSystem.clear_instance_cache()


@contextlib.contextmanager
def emptied(store: Store) -> Iterator[Store]:
    """An empty bucket, and a server that does no harm yet."""
    store.spoiler.reset()
    store.plain.create_bucket(Bucket=BUCKET)
    yield store
    for found in store.plain.list_objects_v2(Bucket=BUCKET).get("Contents", []):
        store.remove(found["Key"])
    store.plain.delete_bucket(Bucket=BUCKET)


def crop(src: Path | Url, dst: Path, **options: Any) -> CropReport:
    """Small crops by one worker, unless ``options`` say otherwise."""
    return run_crop(src, dst, SMALL, **({"jobs": 1} | options))


def made(dst: Path) -> dict[str, Any]:
    """The crops and classes byte by byte, and the journal but for the sources' times."""
    files: dict[str, Any] = dict(files_of(dst))
    del files[JOURNAL_NAME]
    rows = journal_rows(dst / JOURNAL_NAME)
    for row in rows:
        del row["version"]
    return files | {"journal": rows}
