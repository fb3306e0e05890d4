"""Every setting and its default, in one place. YAML in; an unknown key is refused.

A config file holds any subset of the sections below; `--set section.key=value` overrides one value.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from vmr_ray.errors import VmrError, one_line


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DecodeConfig(Section):
    """How frames are taken out of a video."""

    sampling: str = Field("fps=1", description="fps=<x>, every=<n> frames, or keyframes")
    chunk_frames: int = Field(128, ge=1, description="frames that travel together; bounds memory")
    timeout_s: float = Field(120.0, gt=0, description="a decoder that needs longer for one chunk is ended")
    memory_gb: float = Field(4.0, gt=0, description="address space of one decoder process")
    threads: int = Field(1, ge=1, description="decoder threads of one worker")

    @field_validator("sampling")
    @classmethod
    def _known_sampling(cls, value: str) -> str:
        from vmr_ray.video.decode.sampling import Sampling

        Sampling.parse(value)
        return value


class EmbedConfig(Section):
    """Videos -> feature store."""

    encoder: str = Field("efficientnet-lite0", description="efficientnet-lite0, or hf:<name or local path>")
    decode: DecodeConfig = DecodeConfig()
    batch_frames: int = Field(64, ge=1, description="frames in one forward pass of the encoder")
    split_minutes: float = Field(
        10.0, gt=0, description="a longer video is decoded in parts of about this length, by several workers"
    )
    decode_workers: int | None = Field(
        None, ge=1, description="upper limit; default: the cluster's CPUs, more when the cluster grows"
    )
    encode_workers: int | None = Field(
        None,
        ge=1,
        description="encoders beside the decoders; default: as many as the GPUs hold, without GPUs none: "
        "decoding workers encode themselves",
    )
    num_gpus: float | None = Field(
        None,
        ge=0,
        description="GPUs of one encoder, fractions allowed; default: 1 if the cluster has any now. If it is "
        "given, a cluster starts GPU workers for it",
    )
    device: str = Field("cuda", description="torch device of encoders that hold a GPU")
    prefetch: int = Field(
        1, ge=0, description="files that a decode worker copies from object storage ahead of its decoding"
    )
    storage_roots: tuple[str, ...] = Field(
        (), description="URI prefixes that manifests may name; local paths and their own folder always"
    )
    max_attempts: int = Field(2, ge=1, description="tries at one video before it is quarantined")
    max_failed: float = Field(
        0.05, ge=0, le=1, description="share of failed videos above which the job fails"
    )


class ModelConfig(Section):
    """The cross-interaction network."""

    dim: int = Field(256, ge=8, description="width of the two towers and of the first-stage vectors")
    fusion_dim: int = Field(128, ge=8, description="width after fusion, which is computed for every pair")
    heads: int = Field(8, ge=1)
    video_layers: int = Field(1, ge=0, description="self-attention layers over the frames, query-free")
    query_layers: int = Field(
        0, ge=0, description="self-attention layers over the query's tokens; their encoder has had its own"
    )
    cross_layers: int = Field(1, ge=1, description="cross-interaction layers, both directions each")
    fusion: Literal["cross", "one-way", "late"] = Field(
        "cross",
        description="cross: frames attend to tokens and tokens to frames; one-way: frames to tokens only; "
        "late: the modalities meet in a product, without attention between them",
    )
    context: Literal["conv", "attention", "none"] = Field(
        "conv", description="how a fused frame knows its neighbours"
    )
    start_stop: bool = Field(True, description="the first task: start and stop points")
    membership: bool = Field(True, description="the second task: whether a frame belongs to the moment")
    quality: bool = Field(False, description="a head that predicts the IoU of the best spans, to rank them")
    pyramid: int = Field(
        0, ge=0, le=10, description="levels of a multi-scale dense head that regresses the spans; 0: none"
    )
    dropout: float = Field(0.3, ge=0, lt=1)
    window: int = Field(256, ge=8, description="frames the network sees at once; longer videos are windowed")

    @model_validator(mode="after")
    def _heads_divide_dim(self) -> ModelConfig:
        # Twice the heads: rotary positions turn pairs of channels.
        for name, width in (("dim", self.dim), ("fusion_dim", self.fusion_dim)):
            if width % (2 * self.heads):
                raise ValueError(
                    f"heads must divide {name} into even parts, got {name}={width} and heads={self.heads}"
                )
        return self


class LossConfig(Section):
    """Weights of the summed losses; 0 turns one off."""

    span: float = Field(
        0.1,
        ge=0,
        description="start/stop; much more of it than of membership takes all of a clipped gradient",
    )
    membership: float = Field(1.0, ge=0, description="per-frame membership")
    saliency: float = Field(0.0, ge=0, description="membership of the moment's frames against the others'")
    quality: float = Field(1.0, ge=0, description="predicted IoU of spans, with model.quality")
    pyramid: float = Field(1.0, ge=0, description="focal and DIoU loss, with model.pyramid")
    contrast: float = Field(2.0, ge=0, description="learned projection for first-stage retrieval")
    negatives: float = Field(
        0.5, ge=0, description="membership of queries paired with other videos: all zero"
    )


METRICS = ("miou", "r1_at_0.3", "r1_at_0.5", "r1_at_0.7", "r5_at_0.3", "r5_at_0.5", "r5_at_0.7")


class TrainConfig(Section):
    """Feature store + annotations -> checkpoint."""

    text_encoder: str | None = Field(
        None, description="minilm or hf:<name>; default: the text tower of an hf: frame encoder, else minilm"
    )
    loss: LossConfig = LossConfig()
    workers: int = Field(1, ge=1, description="data-parallel training processes")
    min_workers: int | None = Field(
        None,
        ge=1,
        description="begin, and after a loss go on, with as few as this; others join when there is room for "
        "them, from the last checkpoint on. Default: wait for all",
    )
    use_gpu: bool = False
    cpus_per_worker: float = Field(1.0, gt=0)
    cache_gb: float = Field(2.0, ge=0, description="rows a worker keeps in memory instead of streaming anew")
    epochs: int = Field(30, ge=1)
    max_minutes: float | None = Field(
        None, gt=0, description="train no longer than this, validations and earlier attempts included"
    )
    batch_videos: int = Field(32, ge=1, description="videos a step, over all workers")
    queries_per_video: int = Field(10, ge=1, description="queries drawn from one video a step")
    fused_pairs: int = Field(
        64,
        ge=1,
        description="queries fused with their video a step, over all workers; all learn the projection",
    )
    foreign_pairs: float = Field(
        0.25, ge=0, le=1, description="further pairs with a foreign video, as a share"
    )
    compose: float = Field(
        0.75, ge=0, le=1, description="share of the steps that stitch new videos out of moments"
    )
    keep_tokens: float = Field(0.6, gt=0, le=1, description="share of a query's tokens that training sees")
    lr: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.2, ge=0)
    warmup: float = Field(0.05, ge=0, le=1, description="share of the steps")
    clip_norm: float = Field(1.0, gt=0)
    ema: float = Field(0.99, ge=0, lt=1, description="decay of the averaged weights; 0 turns it off")
    val_fraction: float = Field(0.1, gt=0, lt=1, description="share of the videos, if no validation file")
    metric: Literal[METRICS] = Field(  # type: ignore[valid-type]
        "miou", description="of the validations: decides which checkpoint is the best"
    )
    patience: int | None = Field(
        None,
        ge=1,
        description="end after so many validations without a better metric; default: never, for the learning "
        "rate is made to fall until the end",
    )
    evaluate_every: int = Field(1, ge=1, description="epochs between validations (and checkpoints)")
    track: tuple[Literal["tensorboard", "mlflow"], ...] = Field(
        (), description="where else the metrics of every epoch go; needs `pip install 'vmr-ray[tracking]'`"
    )
    seed: int = 0

    @model_validator(mode="after")
    def _workers_in_order(self) -> TrainConfig:
        if self.min_workers is not None and self.min_workers > self.workers:
            raise ValueError(f"min_workers={self.min_workers} must be at most workers={self.workers}")
        return self


class EvaluateConfig(Section):
    """Checkpoint + annotations -> metrics."""

    thresholds: tuple[float, ...] = (0.3, 0.5, 0.7)
    top_k: tuple[int, ...] = (1, 5)
    nms: float = Field(0.5, gt=0, le=1, description="IoU above which the lower-scored span is dropped")
    batch_videos: int = Field(32, ge=1)
    corpus_queries: int = Field(
        500, ge=1, description="queries asked of a whole index, drawn always alike, if there are more"
    )


class IndexConfig(Section):
    """Feature store + checkpoint -> LanceDB index."""

    segment_frames: int = Field(4, ge=1, description="frames a first-stage segment, half overlapping")
    batch_windows: int = Field(32, ge=1)
    ann_min_rows: int = Field(20_000, ge=256, description="below this many segments search is exact")
    partition_rows: int = Field(1000, ge=1, description="segments a partition of the vector index, about")


class SearchConfig(Section):
    """Index -> moments."""

    candidates: int = Field(200, ge=1, description="segments out of stage 1")
    partitions: int = Field(
        60, ge=1, description="of the vector index that stage 1 looks into: more find more, and take longer"
    )
    windows: int = Field(32, ge=1, description="windows that stage 2 looks at")
    nms: float = Field(0.5, gt=0, le=1)
    max_query_chars: int = Field(1000, ge=1)
    max_top_k: int = Field(100, ge=1)


class Config(Section):
    embed: EmbedConfig = EmbedConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    index: IndexConfig = IndexConfig()
    search: SearchConfig = SearchConfig()


Model = TypeVar("Model", bound=BaseModel)


def validated(cls: type[Model], data: Any, origin: str) -> Model:
    """`data` as `cls`; what is wrong with it becomes one sentence that names `origin` and the keys.

    Raises:
        VmrError: an unknown key, a wrong type, or a value out of range.
    """
    try:
        return cls.model_validate(data)
    except ValidationError as error:
        raise VmrError(f"{origin}: " + "; ".join(_sentence(cls, e) for e in error.errors())) from None


def _sentence(cls: type[BaseModel], error: Any) -> str:
    where = ".".join(str(part) for part in error["loc"]) or "the whole"
    if error["type"] != "extra_forbidden":
        return f"{where}: {error['msg'].removeprefix('Value error, ')} (got {error['input']!r})"
    known: Any = cls
    for part in error["loc"][:-1]:
        known = known.model_fields[part].annotation
    return f"unknown key {where!r}; known here: {', '.join(known.model_fields)}"


def load_config(path: str | Path | None = None, overrides: Sequence[str] | None = None) -> Config:
    """Read a YAML config and apply `section.key=value` overrides (values are parsed as YAML).

    Raises:
        VmrError: the file is missing or not YAML, a key is unknown, or a value is refused.
    """
    return load_as(Config, path, overrides)


def load_as(
    cls: type[Model], path: str | Path | None = None, overrides: Sequence[str] | None = None
) -> Model:
    """As `load_config`, into a model of other sections.

    Raises:
        VmrError: the file is missing or not YAML, a key is unknown, or a value is refused.
    """
    data: Any = {}
    if path is not None:
        try:
            data = yaml.safe_load(Path(path).read_text()) or {}
        except OSError as error:
            raise VmrError(f"cannot read the config file {path}: {error.strerror or error}") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise VmrError(f"{path} is not valid YAML: {one_line(error)}") from None
        if not isinstance(data, dict):
            raise VmrError(f"{path}: expected sections such as 'train:', found {type(data).__name__}")
    for override in overrides or []:
        key, equals, value = override.partition("=")
        if not equals:
            raise VmrError(f"--set {override}: write section.key=value, for example train.epochs=5")
        _assign(data, key.strip().split("."), value, override)
    return validated(cls, data, str(path) if path else "--set" if overrides else "config")


def _assign(data: dict[str, Any], keys: list[str], value: str, override: str) -> None:
    for key in keys[:-1]:
        data = data.setdefault(key, {})
        if not isinstance(data, dict):
            raise VmrError(f"--set {override}: {key!r} is a value, not a section")
    try:
        parsed = yaml.safe_load(value)
        # YAML 1.1 reads `1e-3` as a string; a float is what was meant, unless it stands in quotes.
        number = isinstance(parsed, str) and not value.lstrip().startswith(("'", '"')) and _is_float(parsed)
        data[keys[-1]] = float(parsed) if number else parsed
    except yaml.YAMLError:
        data[keys[-1]] = value


def _is_float(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
