"""The feature store: frame features of many videos in Parquet, on local disk or object storage.

    STORE/store.json                                    what the features are; written first
    STORE/chunks/<aa>/<video>-<version>-<chunk>.parquet  one file a chunk, `-last` on the final one
    STORE/quarantine/<video>.json                       videos that failed, and why

A file appears by rename, so it is whole or absent; and its name tells which video, which version of
it and which chunk it holds, so one listing says what is finished. `<video>` and `<version>` are
hashes of the video_id and of the file's fingerprint.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from vmr_ray.errors import VmrError
from vmr_ray.schema import Quarantined, Video, feature_schema
from vmr_ray.sources import filesystem

FORMAT = 1


@dataclass(frozen=True)
class StoreSpec:
    """What every feature in a store has in common."""

    encoder: str
    dim: int
    sampling: str
    format: int = FORMAT


@dataclass
class VideoFeatures:
    """One video: T sampled frames and their features.

    `times` [T] and `edges` [T+1] are seconds; `features` [T, dim] float16.
    """

    video_id: str
    uri: str
    duration: float
    times: np.ndarray
    edges: np.ndarray
    features: np.ndarray
    partial: bool = False


@dataclass(frozen=True)
class _Version:
    """The chunk files of one version of one video."""

    files: tuple[str, ...]
    version: str
    complete: bool
    mtime: int


def _digest(text: str, length: int) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:length]


class FeatureStore:
    """A feature store at `root` (a local path or any URI that pyarrow's filesystems know)."""

    def __init__(self, root: str, spec: StoreSpec):
        self.root, self.spec = str(root), spec
        self.fs, self.path = filesystem(self.root)

    @classmethod
    def create(cls, root: str, spec: StoreSpec) -> FeatureStore:
        """Open the store at `root`, making it if absent.

        Raises:
            VmrError: the store there holds features of another encoder or sampling.
        """
        store = cls(root, spec)
        if store.fs.get_file_info(f"{store.path}/store.json").type == fs.FileType.NotFound:
            store._write(f"{store.path}/store.json", json.dumps(asdict(spec), indent=1).encode())
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
        filesys, path = filesystem(str(root))
        try:
            with filesys.open_input_stream(f"{path}/store.json") as stream:
                data = json.loads(stream.read())
            spec = StoreSpec(**data)
        except FileNotFoundError:
            raise VmrError(
                f"no feature store at {root}: make one with `vmr embed VIDEOS --out {root}`"
            ) from None
        except (ValueError, TypeError) as error:
            raise VmrError(f"{root}/store.json is damaged ({error}): restore it or embed anew") from None
        if spec.format != FORMAT:
            raise VmrError(
                f"{root} has feature format {spec.format}, this version reads {FORMAT}: embed anew"
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
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table(row, schema=feature_schema(self.spec.dim)), sink, compression="zstd")
        name = f"{_digest(video.video_id, 16)}-{_digest(video.fingerprint, 8)}-{index:05d}"
        self._write(f"{self.path}/chunks/{name[:2]}/{name}{'-last' * last}.parquet", sink.getvalue())

    def quarantine(self, row: Quarantined) -> None:
        path = f"{self.path}/quarantine/{_digest(row.video_id, 16)}.json"
        self._write(path, json.dumps(asdict(row)).encode())

    def forgive(self, video: Video) -> None:
        """Take a video that embedded after all out of quarantine."""
        path = f"{self.path}/quarantine/{_digest(video.video_id, 16)}.json"
        if self.fs.get_file_info(path).type == fs.FileType.File:
            self.fs.delete_file(path)

    def delete(self, video_id: str, keep_fingerprint: str | None = None) -> None:
        """Delete a video's chunks, except those of the version with `keep_fingerprint`."""
        kept = None if keep_fingerprint is None else _digest(keep_fingerprint, 8)
        for version in self._versions().get(_digest(video_id, 16), []):
            if version.version != kept:
                for path in version.files:
                    self.fs.delete_file(path)

    def _write(self, path: str, data: bytes | pa.Buffer) -> None:
        """Whole or not at all: a temporary name first, then a rename."""
        self.fs.create_dir(str(PurePosixPath(path).parent), recursive=True)
        temporary = f"{path}.{uuid.uuid4().hex}.part"
        with self.fs.open_output_stream(temporary) as stream:
            stream.write(data)
        self.fs.move(temporary, path)

    # -- reading ---------------------------------------------------------------------------------

    def finished(self, videos: Iterable[Video]) -> set[str]:
        """The ids of those videos whose present version is completely embedded."""
        versions = self._versions()
        done = set()
        for video in videos:
            wanted = _digest(video.fingerprint, 8)
            found = versions.get(_digest(video.video_id, 16), [])
            if any(v.complete and v.version == wanted for v in found):
                done.add(video.video_id)
        return done

    def stale(self, videos: Iterable[Video]) -> list[Video]:
        """Those videos of which the store also holds another version's chunks."""
        versions = self._versions()
        return [
            video
            for video in videos
            if any(
                v.version != _digest(video.fingerprint, 8)
                for v in versions.get(_digest(video.video_id, 16), [])
            )
        ]

    def discard_unfinished(self, videos: Iterable[Video]) -> None:
        """Delete what an interrupted run left of `videos`: they are embedded from their beginning again."""
        versions = self._versions()
        for video in videos:
            for found in versions.get(_digest(video.video_id, 16), []):
                if not found.complete and found.version == _digest(video.fingerprint, 8):
                    for path in found.files:
                        self.fs.delete_file(path)

    def quarantined(self) -> list[Quarantined]:
        selector = fs.FileSelector(f"{self.path}/quarantine", allow_not_found=True)
        rows = []
        for info in self.fs.get_file_info(selector):
            if info.path.endswith(".json"):
                with self.fs.open_input_stream(info.path) as stream:
                    rows.append(Quarantined(**json.loads(stream.read())))
        return sorted(rows, key=lambda row: row.video_id)

    def files(self) -> dict[str, tuple[str, ...]]:
        """video_id -> its chunk files in order, for every finished video."""
        groups = [
            max(done, key=lambda v: v.mtime).files
            for found in self._versions().values()
            if (done := [v for v in found if v.complete])
        ]
        if not groups:
            return {}
        ids = pq.ParquetDataset([g[0] for g in groups], filesystem=self.fs).read(columns=["video_id"])
        return dict(sorted(zip(ids["video_id"].to_pylist(), groups, strict=True)))

    @staticmethod
    def version(files: Sequence[str]) -> str:
        """Which version of its video the chunk files hold; it changes with the file."""
        return PurePosixPath(files[0]).stem.split("-")[1]

    def video_ids(self) -> list[str]:
        return list(self.files())

    def read(self, files: Iterable[str]) -> VideoFeatures:
        """One video from its chunk files, in order."""
        tables = [pq.read_table(path, filesystem=self.fs) for path in files]
        rows = [table.slice(0, 1).to_pydict() | {"features": _matrix(table)} for table in tables]
        first = rows[0]
        return VideoFeatures(
            video_id=first["video_id"][0],
            uri=first["uri"][0],
            duration=rows[-1]["duration"][0],
            times=np.concatenate([row["times"][0] for row in rows]),
            edges=np.concatenate([row["edges"][0][:-1] for row in rows] + [rows[-1]["edges"][0][-1:]]),
            features=np.concatenate([row["features"] for row in rows]),
            partial=any(row["partial"][0] for row in rows),
        )

    def __iter__(self) -> Iterator[VideoFeatures]:
        return (self.read(files) for files in self.files().values())

    def _versions(self) -> dict[str, list[_Version]]:
        """Hashed video_id -> the versions of it that have any chunk here."""
        found: dict[tuple[str, str], list[tuple[int, bool, fs.FileInfo]]] = defaultdict(list)
        selector = fs.FileSelector(f"{self.path}/chunks", recursive=True, allow_not_found=True)
        for info in self.fs.get_file_info(selector):
            name = PurePosixPath(info.path)
            if info.type == fs.FileType.File and name.suffix == ".parquet":
                video, version, chunk, *last = name.stem.split("-")
                found[video, version].append((int(chunk), bool(last), info))
        versions: dict[str, list[_Version]] = defaultdict(list)
        for (video, version), chunks in found.items():
            chunks.sort(key=lambda c: c[0])
            complete = chunks[-1][1] and [c[0] for c in chunks] == list(range(len(chunks)))
            mtime = max(c[2].mtime_ns or 0 for c in chunks)
            paths = tuple(c[2].path for c in chunks)
            versions[video].append(_Version(paths, version, complete, mtime))
        return versions


def _matrix(table: pa.Table) -> np.ndarray:
    frames = table["features"].combine_chunks().flatten()
    dim = frames.type.list_size
    return frames.flatten().to_numpy(zero_copy_only=False).reshape(-1, dim)


def resolve_ids(names: Iterable[str], video_ids: Iterable[str]) -> dict[str, str]:
    """Annotation names -> video_ids: the same path, or one the tail of the other; suffixes may lack.

    `Y1HGC` and `sta/charades/Y1HGC.mp4` both find the video `charades/Y1HGC.mp4`; `b/1.mp4` never
    finds `a/1.mp4`. Names that fit no video are left out.

    Raises:
        VmrError: a name fits several videos.
    """
    by_tail: dict[str, set[str]] = defaultdict(set)
    by_whole: dict[str, set[str]] = defaultdict(set)
    for video_id in video_ids:
        for tail in _tails(video_id):
            by_tail[tail].add(video_id)
        for whole in (video_id, _stem(video_id)):
            by_whole[whole].add(video_id)
    resolved = {}
    for name in set(names):
        fits = {name} & by_whole[name] or by_tail.get(name) or by_tail.get(_stem(name)) or set()
        for tail in _tails(name):
            fits = fits or by_whole.get(tail, set())
        if len(fits) > 1:
            raise VmrError(
                f"the annotated video {name!r} fits several embedded videos "
                f"({', '.join(sorted(fits)[:3])}): write the full id in the annotation file"
            )
        if fits:
            resolved[name] = next(iter(fits))
    return resolved


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))


def _tails(name: str) -> list[str]:
    """`a/b.mp4` -> a/b.mp4, a/b, b.mp4, b."""
    parts = PurePosixPath(name).parts
    wholes = [str(PurePosixPath(*parts[start:])) for start in range(len(parts))]
    return [form for whole in wholes for form in dict.fromkeys((whole, _stem(whole)))]
