"""A folder of videos -> an index that follows it: embed, forget what is gone, index.

STATE/features-*     the feature store, one for each encoder, sampling and fit
STATE/index-*        the index, one for each model
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vmr_ray.config import DecodeConfig, EmbedConfig
from vmr_ray.embedding.embed import embed_videos
from vmr_ray.encoders import (
    EVERYDAY,
    HUB_MODELS,
    MULTILINGUAL,
    check_dual_encoder,
    dual_encoder_of,
    frame_scaling,
)
from vmr_ray.errors import VmrError
from vmr_ray.features import FeatureStore
from vmr_ray.model.checkpoint import load_info
from vmr_ray.schema import Partial, Progress, Quarantined, Spliced
from vmr_ray.search.build import build_index
from vmr_ray.search.tables import IndexTables
from vmr_ray.storage import short_hash
from vmr_ray.video.sources import find_videos
from vmr_ray.workflows.forget import forget_unlisted


@dataclass(frozen=True)
class UpResult:
    """What a call did: the videos it embedded (some of them in part), indexed, forgot and could not embed.

    `index` and `features` are directories; `videos` counts all searchable videos, and `deleted` those of the
    folder that are not, because they were deleted through the service. `left_out` are the folder's files that
    are not named like videos.
    """

    index: str
    features: str
    videos: int
    embedded: int
    indexed: int
    forgotten: int
    deleted: int
    quarantined: list[Quarantined]
    partial: list[Partial]
    spliced: list[Spliced]
    left_out: list[str]


def up(
    videos: str | Path,
    checkpoint: str | Path | None = None,
    encoder: str | None = None,
    state: str | Path | None = None,
    embed_progress: Callable[[Progress], None] | None = None,
    index_progress: Callable[[int, int], None] | None = None,
) -> UpResult:
    """Make the videos of a folder searchable; the next call does only what has changed.

    Args:
        videos: the folder, subfolders included.
        checkpoint: of a trained model; give either this or `encoder`, or neither.
        encoder: what ranks untrained: `everyday` (the default, which needs no network), a short name such as
            `clip`, or `hf:` and the name or path of a CLIP/SigLIP-style model. `everyday-multilingual` needs
            an extra.
        state: the directory of features and index; default: see `default_state`.
        embed_progress: called at the start and after each chunk of frames.
        index_progress: called with the number of videos indexed and the number to index.

    Raises:
        VmrError: there is no such folder, it holds no video, the model is missing or cannot search, or none
            of the videos could be embedded.
    """
    folder = checked_folder(videos)
    if checkpoint is not None and encoder is not None:
        raise VmrError("a checkpoint names its own encoder: give either a checkpoint or an encoder")
    if checkpoint is None:
        settings = EmbedConfig(encoder=encoder or EVERYDAY)
        dual = dual_encoder_of(settings.encoder, chosen=encoder)
        if dual is None:
            raise VmrError(
                f"the encoder {encoder} cannot search untrained: give a checkpoint, or one of "
                f"{', '.join((EVERYDAY, MULTILINGUAL, *HUB_MODELS))} or hf:<name or path> of a "
                "CLIP/SigLIP-style model"
            )
        check_dual_encoder(dual)  # before the work, not after it
        model = dual
    else:
        info = load_info(str(checkpoint))
        decode = DecodeConfig(sampling=info.sampling)
        settings = EmbedConfig(encoder=info.frame_encoder, fit=info.fit, decode=decode)
        model = info.version
    root = Path(state).expanduser().absolute() if state else default_state(folder)
    fit = frame_scaling(settings.encoder, settings.fit).fit
    unusual = "" if fit == "squash" else fit  # the names are those that earlier versions gave
    features = root / f"features-{short_hash(settings.encoder + settings.decode.sampling + unusual, 8)}"
    index = root / f"index-{short_hash(model + unusual, 8)}"

    left_out: list[str] = []
    present = find_videos([folder], left_out=left_out)
    ids = {video.video_id for video in present}
    embedded = embed_videos(present, features, settings, embed_progress)
    # Files uploaded to the service lie elsewhere, and stay.
    forgotten = forget_unlisted(
        FeatureStore.open(str(features)), str(root), ids, lambda uri: Path(uri).is_relative_to(folder)
    )
    choice = model if checkpoint is None else None
    indexed = build_index(features, checkpoint, index, progress=index_progress, encoder=choice)
    return UpResult(
        index=str(index),
        features=str(features),
        videos=indexed.videos,
        embedded=embedded.embedded,
        indexed=indexed.added,
        forgotten=forgotten,
        deleted=len(IndexTables.open(str(index)).deleted_ids() & ids),
        quarantined=embedded.quarantined,
        partial=embedded.partial,
        spliced=embedded.spliced,
        left_out=left_out,
    )


def checked_folder(videos: str | Path) -> Path:
    """The absolute path of a folder of videos. Raises VmrError if there is none."""
    folder = Path(videos).expanduser()
    if not folder.is_dir():
        raise VmrError(f"there is no folder {videos}: name the one that holds your videos")
    return folder.resolve()


def default_state(folder: Path) -> Path:
    """Where the features and the index of a folder are kept: never among the videos themselves."""
    data = Path(os.environ.get("XDG_DATA_HOME") or "~/.local/share").expanduser()
    return data / "vmr" / f"{folder.name}-{short_hash(str(folder), 8)}"
