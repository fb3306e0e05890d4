"""Every setting, its default and its description.

A config file is YAML with any of the sections of `Config`; `--set section.key=value` overrides one value.
Unknown keys are refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from vmr_ray.errors import VmrError, one_line
from vmr_ray.schema import Fit


class Section(BaseModel):
    """A group of settings: immutable, and without room for unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class DecodeConfig(Section):
    """How frames are taken from a video."""

    sampling: str = Field(
        "fps=1", description="fps=X (X frames a second), every=N (each Nth frame), or keyframes"
    )
    chunk_frames: int = Field(
        128, ge=1, description="frames that are decoded and encoded together; limits memory"
    )
    timeout_s: float = Field(
        120.0, gt=0, description="seconds after which a decoder is killed that has not finished a chunk"
    )
    memory_gb: float = Field(4.0, gt=0, description="limit to the address space of one decoder process")
    threads: int = Field(1, ge=1, description="decoder threads of one worker")

    @field_validator("sampling")
    @classmethod
    def _known_sampling(cls, value: str) -> str:
        from vmr_ray.video.decode.sampling import Sampling

        Sampling.parse(value)
        return value


class EmbedConfig(Section):
    """Videos -> feature store."""

    encoder: str = Field(
        "efficientnet-lite0",
        description="efficientnet-lite0 (everyday and everyday-multilingual mean the same), clip, "
        "clip-large, siglip, siglip2, or hf:NAME or hf:PATH of a CLIP- or SigLIP-style model",
    )
    fit: Fit | None = Field(
        None,
        description="how a frame becomes the encoder's square input: crop keeps its middle, pad adds black "
        "bars, squash changes its shape; default: as the encoder's own image processor does it",
    )
    decode: DecodeConfig = DecodeConfig()
    batch_frames: int = Field(64, ge=1, description="frames in one forward pass of the encoder")
    split_minutes: float = Field(
        10.0, gt=0, description="longer videos are decoded by several workers, in parts of about this length"
    )
    decode_workers: int | None = Field(
        None,
        ge=1,
        description="limit to the workers that decode; default: the CPUs of the cluster as it grows",
    )
    encode_workers: int | None = Field(
        None,
        ge=1,
        description="workers that only encode; default: as many as fit on the GPUs. Without GPUs there are "
        "none: the workers that decode also encode",
    )
    num_gpus: float | None = Field(
        None,
        ge=0,
        description="GPUs of one encoder, fractions allowed; default: 1 if the cluster has any GPU now. If "
        "it is set, an autoscaling cluster starts GPU workers",
    )
    device: str = Field("cuda", description="torch device of encoders that have a GPU")
    prefetch: int = Field(
        1, ge=0, description="files that a decoding worker copies from object storage in advance"
    )
    storage_roots: tuple[str, ...] = Field(
        (),
        description="URI prefixes of videos that a manifest may list; local paths and URIs in its own folder "
        "are always allowed",
    )
    max_attempts: int = Field(2, ge=1, description="attempts at one video before it is quarantined")
    max_failed: float = Field(
        0.05, ge=0, le=1, description="share of failed videos above which the job fails"
    )

    @field_validator("encoder")
    @classmethod
    def _stored_encoder(cls, value: str) -> str:
        from vmr_ray.encoders.names import stored_encoder

        return stored_encoder(value)


class ModelConfig(Section):
    """The cross-interaction network."""

    dim: int = Field(256, ge=8, description="width of the two towers and of the first-stage vectors")
    fusion_dim: int = Field(
        128, ge=8, description="width after fusion, which is computed for each pair of query and video"
    )
    heads: int = Field(8, ge=1, description="attention heads; 2 * heads must divide dim and fusion_dim")
    video_layers: int = Field(
        1, ge=0, description="self-attention layers over the frames; they do not depend on the query"
    )
    query_layers: int = Field(
        0, ge=0, description="self-attention layers over the query's tokens, after those of the text encoder"
    )
    cross_layers: int = Field(1, ge=1, description="cross-interaction layers, each in both directions")
    fusion: Literal["cross", "one-way", "late"] = Field(
        "cross",
        description="cross: frames attend to tokens and tokens to frames; one-way: frames to tokens only; "
        "late: the modalities meet in a product, without attention between them",
    )
    context: Literal["conv", "attention", "none"] = Field(
        "conv", description="how fused frames get information from their neighbours"
    )
    start_stop: bool = Field(True, description="first task: predict where the moment starts and stops")
    membership: bool = Field(
        True, description="second task: predict for each frame whether it belongs to the moment"
    )
    quality: bool = Field(
        False, description="a head that predicts the IoU of the best spans, by which they are ranked"
    )
    pyramid: int = Field(
        0, ge=0, le=10, description="levels of a multi-scale head that regresses spans; 0: no such head"
    )
    dropout: float = Field(
        0.3, ge=0, lt=1, description="share of the activations that are dropped in training"
    )
    window: int = Field(
        256, ge=8, description="frames the network sees at once; longer videos are cut into windows"
    )

    @model_validator(mode="after")
    def _heads_divide_dim(self) -> ModelConfig:
        # Twice the heads, because rotary positions rotate pairs of channels.
        for name, width in (("dim", self.dim), ("fusion_dim", self.fusion_dim)):
            if width % (2 * self.heads):
                raise ValueError(
                    f"heads must divide {name} into even parts, got {name}={width} and heads={self.heads}"
                )
        return self


class LossConfig(Section):
    """Weights of the losses in their sum; 0 turns a loss off."""

    span: float = Field(
        0.1,
        ge=0,
        description="start and stop points; with a much larger weight than membership this loss would take "
        "up all of the clipped gradient",
    )
    membership: float = Field(1.0, ge=0, description="membership of each frame in the moment")
    saliency: float = Field(
        0.0, ge=0, description="contrast: the moment's frames must have a higher membership than the others"
    )
    quality: float = Field(1.0, ge=0, description="predicted IoU of spans; only with model.quality")
    pyramid: float = Field(
        1.0, ge=0, description="focal and DIoU loss of the multi-scale head; only with model.pyramid"
    )
    contrast: float = Field(
        2.0, ge=0, description="contrast between queries and moments in the vectors of the first stage"
    )
    negatives: float = Field(
        0.5, ge=0, description="membership of queries paired with another video, which must be zero"
    )


METRICS = ("miou", "r1_at_0.3", "r1_at_0.5", "r1_at_0.7", "r5_at_0.3", "r5_at_0.5", "r5_at_0.7")


class TrainConfig(Section):
    """Feature store + annotations -> checkpoint."""

    text_encoder: str | None = Field(
        None, description="minilm or hf:NAME; default: the text tower of an hf: frame encoder, else minilm"
    )
    loss: LossConfig = LossConfig()
    workers: int = Field(1, ge=1, description="data-parallel training processes")
    min_workers: int | None = Field(
        None,
        ge=1,
        description="start, and continue after a failure, with as few workers as this; others join when "
        "there is room, from the last checkpoint. Default: wait for all",
    )
    use_gpu: bool = Field(False, description="one GPU for each worker")
    cpus_per_worker: float = Field(1.0, gt=0, description="CPUs that each worker reserves")
    cache_gb: float = Field(
        2.0, ge=0, description="memory in which a worker keeps rows, instead of reading them every epoch"
    )
    epochs: int = Field(30, ge=1, description="passes over the annotated videos")
    max_minutes: float | None = Field(
        None, gt=0, description="limit to the time of training, with validations and earlier attempts"
    )
    batch_videos: int = Field(32, ge=1, description="videos in one step, over all workers")
    queries_per_video: int = Field(10, ge=1, description="queries drawn from one video in one step")
    fused_pairs: int = Field(
        64, ge=1, description="queries that are fused with their video in one step, over all workers"
    )
    foreign_pairs: float = Field(
        0.25, ge=0, le=1, description="pairs of a query with another video, as a share of fused_pairs"
    )
    compose: float = Field(
        0.75, ge=0, le=1, description="share of the steps whose videos are stitched together from moments"
    )
    keep_tokens: float = Field(
        0.6, gt=0, le=1, description="share of a query's tokens that are kept in training"
    )
    lr: float = Field(1e-3, gt=0, description="peak learning rate")
    weight_decay: float = Field(0.2, ge=0, description="weight decay of AdamW")
    warmup: float = Field(0.05, ge=0, le=1, description="share of the steps in which the learning rate rises")
    clip_norm: float = Field(1.0, gt=0, description="limit to the norm of the gradient")
    ema: float = Field(
        0.99, ge=0, lt=1, description="decay of the moving average of the weights; 0: no average"
    )
    val_fraction: float = Field(
        0.1, gt=0, lt=1, description="share of the videos held out if there is no validation file"
    )
    metric: Literal[METRICS] = Field(  # type: ignore[valid-type]
        "miou", description="the metric of the validations that decides which checkpoint is the best"
    )
    patience: int | None = Field(
        None,
        ge=1,
        description="stop after this number of validations without a better metric; default: never, because "
        "the learning rate is scheduled to fall until the end",
    )
    evaluate_every: int = Field(
        1, ge=1, description="epochs between validations, which also write checkpoints"
    )
    track: tuple[Literal["tensorboard", "mlflow"], ...] = Field(
        (),
        description="also log the metrics of every epoch there; needs `pip install 'vmr-ray[tracking]'`",
    )
    seed: int = Field(0, description="seed of everything that is random in training")

    @model_validator(mode="after")
    def _workers_in_order(self) -> TrainConfig:
        if self.min_workers is not None and self.min_workers > self.workers:
            raise ValueError(f"min_workers={self.min_workers} must be at most workers={self.workers}")
        return self


class EvaluateConfig(Section):
    """Checkpoint + annotations -> metrics."""

    thresholds: tuple[float, ...] = Field((0.3, 0.5, 0.7), description="IoU from which a span is a hit")
    top_k: tuple[int, ...] = Field((1, 5), description="K of R@K: a hit must be among the best K spans")
    nms: float = Field(
        0.5, gt=0, le=1, description="IoU of two spans above which the one with the lower score is dropped"
    )
    batch_videos: int = Field(32, ge=1, description="videos that a worker evaluates at once")
    corpus_queries: int = Field(
        500, ge=1, description="limit to the queries asked of a whole index; always the same ones are drawn"
    )


class IndexConfig(Section):
    """Feature store + checkpoint -> LanceDB index."""

    segment_frames: int = Field(
        4, ge=1, description="frames of a first-stage segment; segments overlap by half"
    )
    batch_windows: int = Field(32, ge=1, description="windows that a worker encodes at once")
    ann_min_rows: int = Field(
        20_000, ge=256, description="with fewer segments the search is exact, without a vector index"
    )
    partition_rows: int = Field(
        1000, ge=1, description="approximate number of segments in a partition of the vector index"
    )


class SearchConfig(Section):
    """Index -> moments."""

    candidates: int = Field(200, ge=1, description="segments that stage 1 returns")
    partitions: int = Field(
        60,
        ge=1,
        description="partitions of the vector index that stage 1 searches: more is better but slower",
    )
    windows: int = Field(32, ge=1, description="windows that stage 2 fuses with the query")
    nms: float = Field(
        0.5, gt=0, le=1, description="IoU of two moments above which the one with the lower score is dropped"
    )
    max_query_chars: int = Field(1000, ge=1, description="longer queries are refused")
    max_top_k: int = Field(100, ge=1, description="limit to the moments of one answer")


class Config(Section):
    """All sections."""

    embed: EmbedConfig = EmbedConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    index: IndexConfig = IndexConfig()
    search: SearchConfig = SearchConfig()


Model = TypeVar("Model", bound=BaseModel)


def validated(cls: type[Model], data: Any, origin: str) -> Model:
    """`data` as `cls`. Errors become one sentence that names `origin` and the keys.

    Raises:
        VmrError: an unknown key, a wrong type, or a value out of range.
    """
    try:
        return cls.model_validate(data)
    except ValidationError as error:
        raise VmrError(f"{origin}: " + "; ".join(_sentence(cls, e) for e in error.errors())) from None


def _sentence(cls: type[BaseModel], error: Any) -> str:
    """One of pydantic's errors as a part of a sentence."""
    key = ".".join(str(part) for part in error["loc"]) or "the whole"
    if error["type"] != "extra_forbidden":
        return f"{key}: {error['msg'].removeprefix('Value error, ')} (got {error['input']!r})"
    section: Any = cls
    for part in error["loc"][:-1]:
        section = section.model_fields[part].annotation
    return f"unknown key {key!r}; known here: {', '.join(section.model_fields)}"


def load_config(path: str | Path | None = None, overrides: Sequence[str] | None = None) -> Config:
    """Read a YAML config and apply `section.key=value` overrides, whose values are YAML too.

    Raises:
        VmrError: the file is missing or not YAML, a key is unknown, or a value is refused.
    """
    return load_as(Config, path, overrides)


def load_as(
    cls: type[Model], path: str | Path | None = None, overrides: Sequence[str] | None = None
) -> Model:
    """Like `load_config`, for a class with other sections.

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
    """Set the value at the path `keys` of `data`; `override` is the whole text, for the error."""
    for key in keys[:-1]:
        data = data.setdefault(key, {})
        if not isinstance(data, dict):
            raise VmrError(f"--set {override}: {key!r} is a value, not a section")
    try:
        parsed = yaml.safe_load(value)
        # YAML 1.1 reads `1e-3` as a string. It is meant as a float, unless it is in quotes.
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
