"""The feature store: frame features of many videos in Parquet, on local disk or object storage.

    STORE/store.json                                    what the features are; written first
    STORE/chunks/<aa>/<video>-<version>-<chunk>.parquet  one file a chunk, `-last` on the final one
    STORE/packs/<number>-<id>.parquet, .json            many chunks, one row group each, and their names
    STORE/quarantine/<video>.json                       videos that failed, and why

A file appears by rename, so it is whole or absent; and its name tells which video, which version of
it and which chunk it holds, so one listing says what is finished. `<video>` and `<version>` are
hashes of the video_id and of the file's fingerprint. `compact` moves the chunks of finished videos into
packs. A pack exists once its JSON does, and a chunk that is in a pack and also in a file counts once.
Every chunk carries a digest of its content, so that damage is never read as features.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from vmr_ray.errors import VmrError
from vmr_ray.features.chunks import (
    NAME,
    PARQUET,
    DamagedError,
    Pack,
    Place,
    Version,
    as_place,
    chunk_name,
    chunk_schema,
    content_digest,
    matrix,
    row_group,
    values,
)
from vmr_ray.schema import STORE_FORMAT, Quarantined, StoreSpec, Video, VideoFeatures, feature_schema
from vmr_ray.storage import absolute, exists, filesystem, read_json, replacing, short_hash, write_json

_THREADS = 16  # files looked into at a time: object storage answers slowly, but many at once


class FeatureStore:
    """A feature store at `root` (a local path or any URI that pyarrow's filesystems know)."""

    def __init__(self, root: str, spec: StoreSpec):
        self.fs, self.path = filesystem(root)
        self.root, self.spec = absolute(root), spec
        self._footer: tuple[str, pq.FileMetaData | None] = ("", None)  # of the pack read last

    @classmethod
    def create(cls, root: str, spec: StoreSpec) -> FeatureStore:
        """Open the store at `root`, making it if absent.

        Raises:
            VmrError: the store there holds features of another encoder or sampling.
        """
        store = cls(root, spec)
        if not exists(f"{root}/store.json"):
            write_json(f"{root}/store.json", asdict(spec))
        found = cls.open(root).spec
        if found != spec:
            raise VmrError(
                f"{root} holds features of {found.encoder} at {found.sampling}, not of {spec.encoder} "
                f"at {spec.sampling}: choose another --out, or the same encoder and sampling"
            )
        return store

    @classmethod
    def open(cls, root: str) -> FeatureStore:
        """Open an existing store.

        Raises:
            VmrError: there is none, or it was written by another version of the format.
        """
        file = f"{absolute(root)}/store.json"
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
                f"{root} has feature format {spec.format}, this version reads {STORE_FORMAT}: embed anew"
            )
        return cls(root, spec)

    # -- writing ---------------------------------------------------------------------------------

    def write_chunk(
        self,
        video: Video,
        index: int,
        last: bool,
        *,
        times: np.ndarray,
        edges: np.ndarray,
        features: np.ndarray,
        duration: float,
        partial: bool,
    ) -> None:
        """Write one chunk: times [n], edges [n+1] in seconds, features [n, dim]."""
        flat = pa.array(np.ascontiguousarray(features, dtype=np.float16).reshape(-1), pa.float16())
        frames = pa.FixedSizeListArray.from_arrays(flat, self.spec.dim)
        row = {
            "video_id": [video.video_id],
            "chunk": [index],
            "last": [last],
            "uri": [video.uri],
            "fingerprint": [video.fingerprint],
            "duration": [duration],
            "partial": [partial],
            "times": [times],
            "edges": [edges],
            "features": pa.ListArray.from_arrays(pa.array([0, len(frames)], pa.int32()), frames),
        }
        table = pa.table(row, schema=feature_schema(self.spec.dim))
        digest = pa.array([content_digest(values(table), matrix(table))])
        table = pa.Table.from_arrays([*table.columns, digest], schema=chunk_schema(self.spec.dim))
        name = chunk_name(video.video_id, video.fingerprint, index, last)
        with self.writing(f"{self.path}/chunks/{name[:2]}/{name}.parquet") as stream:
            pq.write_table(table, stream, **PARQUET)

    def quarantine(self, row: Quarantined) -> None:
        path = f"{self.path}/quarantine/{short_hash(row.video_id, 16)}.json"
        self._write(path, json.dumps(asdict(row)).encode())

    def forgive(self, video_ids: Iterable[str]) -> None:
        """Take videos that are embedded after all out of quarantine."""
        embedded = {short_hash(name, 16) for name in video_ids}
        selector = fs.FileSelector(f"{self.path}/quarantine", allow_not_found=True)
        for info in self.fs.get_file_info(selector):
            if PurePosixPath(info.path).stem in embedded:
                self.fs.delete_file(info.path)

    def delete(self, video_id: str) -> None:
        """Delete all of a video."""
        self.remove(self.versions().get(short_hash(video_id, 16), []))

    def delete_stale(self, videos: Iterable[Video]) -> None:
        """Delete what the store holds of other versions of `videos` than these."""
        versions = self.versions()
        self.remove(
            found
            for video in videos
            for found in versions.get(short_hash(video.video_id, 16), [])
            if found.version != short_hash(video.fingerprint, 8)
        )

    def remove(self, versions: Iterable[Version]) -> None:
        """Delete all copies of these versions: files at once, packed chunks from their pack's JSON."""
        packed: dict[str, set[str]] = defaultdict(set)
        for place in (place for version in versions for place in version.copies):
            if place.packed:
                packed[place.file].add(place.name)
            else:
                self.unlink(place.address)
        for path, names in packed.items():
            with suppress(FileNotFoundError):  # compacted meanwhile
                pack = self.pack(f"{path.removesuffix('.parquet')}.json")
                left = (place if place and place.name not in names else None for place in pack.places)
                self.write_pack(replace(pack, places=tuple(left)))

    def write_pack(self, pack: Pack) -> None:
        """Write a pack's JSON, after its Parquet file: with it the pack exists, or has changed."""
        chunks = [place and (place.name, place.mtime, place.size, place.video_id) for place in pack.places]
        self._write(pack.listing, json.dumps({"chunks": chunks}).encode())

    def unlink(self, path: str) -> None:
        """Delete a file, if it is there."""
        with suppress(FileNotFoundError):
            self.fs.delete_file(path)

    @contextmanager
    def writing(self, path: str) -> Iterator[pa.NativeFile]:
        """A stream into a file of the store, see `storage.replacing`."""
        with replacing(self.fs, path) as stream:
            yield stream

    def _write(self, path: str, data: bytes) -> None:
        with self.writing(path) as stream:
            stream.write(data)

    # -- reading ---------------------------------------------------------------------------------

    def finished(self, videos: Iterable[Video]) -> set[str]:
        """The ids of those videos whose present version is completely embedded."""
        versions = self.versions()
        done = set()
        for video in videos:
            wanted = short_hash(video.fingerprint, 8)
            found = versions.get(short_hash(video.video_id, 16), [])
            if any(v.complete and v.version == wanted for v in found):
                done.add(video.video_id)
        return done

    def discard_unfinished(self, videos: Iterable[Video]) -> None:
        """Delete what an interrupted run left of `videos`: they are embedded from their beginning again."""
        versions = self.versions()
        self.remove(
            found
            for video in videos
            for found in versions.get(short_hash(video.video_id, 16), [])
            if not found.complete and found.version == short_hash(video.fingerprint, 8)
        )

    def quarantined(self) -> list[Quarantined]:
        selector = fs.FileSelector(f"{self.path}/quarantine", allow_not_found=True)
        rows = []
        for info in self.fs.get_file_info(selector):
            if info.path.endswith(".json"):
                with self.fs.open_input_stream(info.path) as stream:
                    rows.append(Quarantined(**json.loads(stream.read())))
        return sorted(rows, key=lambda row: row.video_id)

    def files(self) -> dict[str, tuple[str, ...]]:
        """video_id -> the addresses of its chunks in order, for every finished video.

        An address is a file's path, or one inside a pack; they hold until the next `compact`.

        Raises:
            DamagedError: a pack's JSON, or a chunk that tells a video's id.
        """
        return {video_id: version.files for video_id, version in self.newest().items()}

    def newest(self) -> dict[str, Version]:
        """video_id -> its newest complete version, in order of the video_ids."""
        found = [
            max(done, key=lambda v: v.mtime)
            for versions in self.versions().values()
            if (done := [v for v in versions if v.complete])
        ]
        with ThreadPoolExecutor(_THREADS) as pool:
            ids = pool.map(lambda v: v.places[0].video_id or self._video_id(v.files[0]), found)
            return dict(sorted(zip(ids, found, strict=True), key=lambda pair: pair[0]))

    @staticmethod
    def version(files: Sequence[str]) -> str:
        """Which version of its video the chunks at these addresses hold; it changes with the file."""
        return PurePosixPath(files[0]).stem.split("-")[1]

    def video_ids(self) -> list[str]:
        return list(self.files())

    def read(self, files: Iterable[str]) -> VideoFeatures:
        """One video from the addresses of its chunks, in order.

        Raises:
            DamagedError: a chunk is missing, or not as it was written.
        """
        tables = [self.load(address) for address in files]
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

    def load(self, address: str) -> pa.Table:
        """The chunk at `address`: one row of `chunk_schema`.

        Raises:
            DamagedError: it is missing, or not as it was written.
        """
        name = PurePosixPath(address).stem
        with self._reading(address):
            table = self._table(address)
            if not table.schema.equals(chunk_schema(self.spec.dim)) or table.num_rows != 1:
                raise ValueError("its columns are not those of a chunk")
            row = values(table)
            if row.pop("digest") != content_digest(row, matrix(table)):
                raise ValueError("its content is not what was written")
            if chunk_name(row["video_id"], row["fingerprint"], row["chunk"], row["last"]) != name:
                raise ValueError(f"it holds chunk {row['chunk']} of {row['video_id']} instead")
        return table

    def _video_id(self, address: str) -> str:
        with self._reading(address):
            return str(self._table(address, ["video_id"])["video_id"][0].as_py())

    @contextmanager
    def _reading(self, address: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise DamagedError(address, "it is missing", self.root) from None
        except (pa.ArrowException, OSError, ValueError, LookupError) as error:
            with self.fs.open_input_file(row_group(address)[0]) as stream:
                stream.read(1)  # trouble with the storage is no damage: it is raised here
            what = "".join(filter(str.isprintable, " ".join(str(error).split())))
            raise DamagedError(address, what, self.root) from None

    def _table(self, address: str, columns: list[str] | None = None) -> pa.Table:
        path, group = row_group(address)
        known, footer = self._footer
        with (
            self.fs.open_input_file(path) as stream,
            pq.ParquetFile(
                stream,
                metadata=footer if known == path else None,
                page_checksum_verification=True,
                pre_buffer=True,
            ) as file,
        ):
            if path != address:  # neighbours in a pack are read one after the other
                self._footer = path, file.metadata
            return file.read_row_group(group, columns, use_threads=False)

    def infos(self, folder: str) -> list[fs.FileInfo]:
        """All files below a folder of the store, or below the store itself ("")."""
        selector = fs.FileSelector(f"{self.path}/{folder}".rstrip("/"), recursive=True, allow_not_found=True)
        return [info for info in self.fs.get_file_info(selector) if info.type == fs.FileType.File]

    def listings(self) -> list[str]:
        """The paths of the packs' JSON files."""
        return [info.path for info in self.infos("packs") if info.path.endswith(".json")]

    def pack(self, listing: str) -> Pack:
        """Read a pack's JSON.

        Raises:
            DamagedError: it is not one.
            FileNotFoundError: it is gone.
        """
        with self.fs.open_input_stream(listing) as stream:
            text = stream.read()
        path = f"{listing.removesuffix('.json')}.parquet"
        try:
            places = [
                chunk and Place(chunk[0], f"{path}#{group}/{chunk[0]}", *chunk[1:])
                for group, chunk in enumerate(json.loads(text)["chunks"])
            ]
            if not all(NAME.fullmatch(place.name) for place in places if place):
                raise ValueError
            return Pack(path, int(PurePosixPath(path).name.split("-")[0]), tuple(places))
        except (ValueError, TypeError, LookupError):
            raise DamagedError(listing, "it is not the JSON of a pack", self.root) from None

    def packs(self) -> list[Pack]:
        """All packs.

        Raises:
            DamagedError: the JSON of one.
        """
        try:
            with ThreadPoolExecutor(_THREADS) as pool:
                return list(pool.map(self.pack, self.listings()))
        except FileNotFoundError:  # compacted meanwhile
            return self.packs()

    def versions(self, packs: Iterable[Pack] | None = None) -> dict[str, list[Version]]:
        """Hashed video_id -> the versions of it that have any chunk here (in `packs`; default: in all)."""
        # Files before packs: what is being compacted is then seen twice rather than not at all.
        loose = [place for info in self.infos("chunks") if (place := as_place(info))]
        packs = self.packs() if packs is None else packs
        copies: dict[str, list[Place]] = defaultdict(list)
        for pack in sorted(packs, key=lambda pack: -pack.number):
            for place in filter(None, pack.places):
                copies[place.name].append(place)
        for place in loose:
            copies[place.name].append(place)
        found: dict[tuple[str, str], list[tuple[int, bool, list[Place]]]] = defaultdict(list)
        for name, places in copies.items():
            video, version, chunk, *last = name.split("-")
            found[video, version].append((int(chunk), bool(last), places))
        versions: dict[str, list[Version]] = defaultdict(list)
        for (video, version), chunks in found.items():
            chunks.sort(key=lambda c: c[0])
            whole = [(i, i == len(chunks) - 1) for i in range(len(chunks))]
            versions[video].append(
                Version(
                    version,
                    places=tuple(c[2][0] for c in chunks),
                    copies=tuple(place for c in chunks for place in c[2]),
                    complete=[c[:2] for c in chunks] == whole,
                )
            )
        return versions
