"""The feature store: frame features of many videos in Parquet, on local disk or object storage.

    STORE/store.json                                     what the features are; written first
    STORE/chunks/<aa>/<video>-<version>-<chunk>.parquet  one file per chunk, `-last` on the final one
    STORE/packs/<number>-<id>.parquet, .json             many chunks, one row group each, and their names
    STORE/quarantine/<video>.json                        videos that failed, and why
    STORE/pictures/<video>-<version>/<chunk>.parquet     see pictures.py

A file appears by rename, so it is either whole or missing. Its name tells which video, which version of the
video and which chunk is in it, so one listing shows what is finished. `<video>` and `<version>` are hashes of
the video_id and of the fingerprint of the video's file. `compact` moves the chunks of finished videos into
packs. A pack exists once its JSON does, and a chunk that is both in a pack and in a file counts once. Every
chunk carries a digest of its content, so damage is never read as features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import PurePosixPath

import numpy as np

from vmr_ray.errors import VmrError
from vmr_ray.features.catalogue import THREADS, Catalogue, VideoVersion
from vmr_ray.features.chunk_files import ChunkFiles
from vmr_ray.features.chunks import matrix, values, version_key, video_key
from vmr_ray.features.folder import StoreFolder
from vmr_ray.features.pictures import Pictures
from vmr_ray.features.quarantine import Quarantine
from vmr_ray.schema import STORE_FORMAT, Chunk, StoreSpec, Video, VideoFeatures
from vmr_ray.storage import absolute, exists, join, read_json, write_json


class FeatureStore:
    """A feature store at `root` (a local path, or any URI that pyarrow's filesystems support).

    Attributes:
        spec: what all its features have in common.
        root, path: its absolute path or URI, and its path on its filesystem.
        folder: its files.
        catalogue: which versions of videos are in it, and where.
        chunks: reads and writes single chunks.
        quarantine: the videos that failed.
        pictures: of videos whose key frames are far apart.
    """

    def __init__(self, root: str, spec: StoreSpec):
        self.spec = spec
        self.folder = StoreFolder(root)
        self.root, self.path = self.folder.root, self.folder.path
        self.catalogue = Catalogue(self.folder)
        self.chunks = ChunkFiles(self.folder, spec.dim)
        self.quarantine = Quarantine(self.folder)
        self.pictures = Pictures(root)

    @classmethod
    def create(cls, root: str, spec: StoreSpec) -> FeatureStore:
        """Open the store at `root`; make it if there is none.

        Raises:
            VmrError: the existing store holds features of another encoder, sampling or fit.
        """
        store = cls(root, spec)
        if not exists(join(root, "store.json")):
            write_json(join(root, "store.json"), spec.as_json())
        existing = cls.open(root).spec
        if existing != spec:
            only_fit = existing.fit != spec.fit and replace(existing, fit=spec.fit) == spec
            raise VmrError(
                f"{root} holds features of frames made square by {existing.fit}, not by {spec.fit}: choose "
                f"another --out, or --set embed.fit={existing.fit}"
                if only_fit
                else f"{root} holds features of {existing.encoder} at {existing.sampling}, not of "
                f"{spec.encoder} at {spec.sampling}: choose another --out, or the same encoder and sampling"
            )
        return store

    @classmethod
    def open(cls, root: str) -> FeatureStore:
        """Open an existing store.

        Raises:
            VmrError: there is none, or it was written by another version of the format.
        """
        file = join(absolute(root), "store.json")
        try:
            spec = StoreSpec(**read_json(file, "restore it or embed again"))
        except FileNotFoundError:
            raise VmrError(
                f"no feature store at {root}: make one with `vmr embed VIDEOS --out {root}`"
            ) from None
        except TypeError as error:
            raise VmrError(f"{file} is damaged ({error}): restore it or embed again") from None
        if spec.format != STORE_FORMAT:
            raise VmrError(
                f"{root} has feature format {spec.format}, this version reads {STORE_FORMAT}: embed again"
            )
        return cls(root, spec)

    def write_chunk(self, video: Video, chunk: Chunk, features: np.ndarray) -> None:
        """Write one chunk; `features` [n, dim] are stored as float16."""
        self.chunks.write(video, chunk, features)

    def finished(self, videos: Iterable[Video]) -> set[str]:
        """The ids of those videos whose current version is completely embedded."""
        versions = self.catalogue.versions()
        return {
            video.video_id
            for video in videos
            for v in versions.get(video_key(video.video_id), [])
            if v.complete and v.version == version_key(video.fingerprint)
        }

    def discard_unfinished(self, videos: Iterable[Video]) -> None:
        """Delete what an interrupted run left of `videos`, because they are embedded from the start again."""
        self._remove(
            videos,
            lambda v, video: not v.complete and v.version == version_key(video.fingerprint),
        )

    def delete_stale(self, videos: Iterable[Video]) -> None:
        """Delete all versions of `videos` but the current ones."""
        videos = list(videos)
        self.pictures.remove([v.video_id for v in videos], [version_key(v.fingerprint) for v in videos])
        self._remove(videos, lambda v, video: v.version != version_key(video.fingerprint))

    def delete(self, video_id: str) -> None:
        """Delete all versions of a video."""
        self.pictures.remove([video_id])
        self.catalogue.remove(self.catalogue.versions().get(video_key(video_id), []))

    def _remove(self, videos: Iterable[Video], chosen: Callable[[VideoVersion, Video], bool]) -> None:
        """Delete the versions of `videos` that `chosen` accepts."""
        versions = self.catalogue.versions()
        self.catalogue.remove(
            v for video in videos for v in versions.get(video_key(video.video_id), []) if chosen(v, video)
        )

    def files(self) -> dict[str, tuple[str, ...]]:
        """video_id -> the addresses of its chunks in order, for every finished video.

        An address is the path of a file, or of a row group in a pack. It is valid until the next `compact`.

        Raises:
            DamagedError: a pack's JSON is damaged, or a chunk that must be read for its video_id.
        """
        return {video_id: version.addresses for video_id, version in self.newest().items()}

    def newest(self) -> dict[str, VideoVersion]:
        """video_id -> its newest complete version, sorted by video_id; errors as for `files`."""
        newest = [
            max(complete, key=lambda v: v.mtime)
            for versions in self.catalogue.versions().values()
            if (complete := [v for v in versions if v.complete])
        ]
        with ThreadPoolExecutor(THREADS) as pool:
            ids = pool.map(lambda v: v.chunks[0].video_id or self.chunks.video_id(v.addresses[0]), newest)
            return dict(sorted(zip(ids, newest, strict=True), key=lambda pair: pair[0]))

    @staticmethod
    def version(files: Sequence[str]) -> str:
        """The version of a video that chunks at these addresses hold; it changes with the video's file."""
        return PurePosixPath(files[0]).stem.split("-")[1]

    def video_ids(self) -> list[str]:
        """The ids of all finished videos, sorted; errors as for `files`."""
        return list(self.files())

    def read(self, files: Iterable[str]) -> VideoFeatures:
        """One video from the addresses of its chunks, in order.

        Raises:
            DamagedError: a chunk is missing, or not as it was written.
        """
        tables = [self.chunks.read(address) for address in files]
        rows = [values(table) for table in tables]
        return VideoFeatures(
            video_id=rows[0]["video_id"],
            uri=rows[0]["uri"],
            duration=rows[-1]["duration"],
            times=np.concatenate([row["times"] for row in rows]),
            edges=np.concatenate([row["edges"][:-1] for row in rows] + [rows[-1]["edges"][-1:]]),
            features=np.concatenate([matrix(table) for table in tables]),
            partial=any(row["partial"] for row in rows),
        )

    def __iter__(self) -> Iterator[VideoFeatures]:
        return (self.read(files) for files in self.files().values())
