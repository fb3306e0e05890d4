"""A benchmark from published features: import -> train -> evaluate, by a recipe under configs/.

OUT/features     the imported feature store
OUT/text         the imported token states, if the recipe names any
OUT/run          the run of `train`
OUT/report       what `evaluate` writes
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from vmr_ray.annotations import load_annotations
from vmr_ray.config import Config, Section, load_as
from vmr_ray.encoders import check_texts
from vmr_ray.errors import VmrError
from vmr_ray.evaluation.evaluate import Evaluation, evaluate
from vmr_ray.importing.arrays import HDF5, SUFFIXES
from vmr_ray.importing.features import TOLERANCE, Imported, import_features
from vmr_ray.importing.token_states import import_text
from vmr_ray.storage import absolute
from vmr_ray.training.train import TrainResult, train


class SourceConfig(Section):
    """One source of features."""

    path: str = Field(description="folder or HDF5 file, as the public release names it")
    key: str | None = Field(None, description="array inside a file")


class TextConfig(SourceConfig):
    """Token states that come with the features."""

    normalize: bool = False
    max_tokens: int | None = Field(None, ge=1)


class FilesConfig(Section):
    """The benchmark's annotation files, by name."""

    train: str
    val: str | None = Field(None, description="default: videos of train are held out")
    test: str


class BenchmarkConfig(Section):
    """Where the features and annotations of a recipe come from."""

    name: str = Field(description="of the features, in the store's `imported:<name>`")
    sources: tuple[SourceConfig, ...] = Field(min_length=1, description="joined in this order")
    clip_seconds: float | Literal["duration"] = Field(
        description="of one clip, or duration: a video's duration in equal shares"
    )
    max_clips: int | None = Field(None, ge=1, description="longer videos are averaged down to this many")
    normalize: bool = Field(False, description="rows of each source to length 1")
    tolerance: int = Field(TOLERANCE, ge=0, description="clips by which lengths may differ")
    text: TextConfig | None = None
    annotations: FilesConfig


class Recipe(Config):
    """The sections of every config, and the benchmark."""

    benchmark: BenchmarkConfig

    def config(self) -> Config:
        """The sections of every config."""
        return Config(**{name: getattr(self, name) for name in Config.model_fields})


@dataclass(frozen=True)
class Reproduction:
    """The result of each step."""

    imported: Imported
    trained: TrainResult
    evaluation: Evaluation


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply `section.key=value` overrides.

    Raises:
        VmrError: the file is missing or not YAML, a key is unknown, or a value is refused.
    """
    return load_as(Recipe, path, overrides)


def reproduce(
    recipe: Recipe,
    features: Sequence[str | Path],
    annotations: str | Path,
    out: str | Path,
    progress: Callable[[int, int], None] | None = None,
    report: Callable[[dict[str, float]], None] | None = None,
) -> Reproduction:
    """Run a recipe; the same call resumes where an interrupted one stopped.

    Args:
        features: the folder that holds the recipe's sources, or the sources themselves in the recipe's
            order (the text's last).
        annotations: the folder of the benchmark's annotation files.
        progress: called with the number of videos imported and the number to import.
        report: called with the metrics of every epoch.

    Raises:
        VmrError: an input is missing or unusable, too many videos failed, or `out` holds something else.
    """
    benchmark, root = recipe.benchmark, absolute(out)
    paths = _sources(benchmark, features)
    names = benchmark.annotations
    train_file, test_file = _annotation(annotations, names.train), _annotation(annotations, names.test)
    val_file = _annotation(annotations, names.val) if names.val else None
    train_set, test_set = load_annotations(train_file), load_annotations(test_file)
    val_set = load_annotations(val_file) if val_file else None
    sets = [train_set, *([val_set] if val_set else []), test_set]
    imported = import_features(
        paths[: len(benchmark.sources)],
        f"{root}/features",
        benchmark.clip_seconds,
        name=benchmark.name,
        keys=[source.key for source in benchmark.sources],
        annotations=sets,
        tolerance=benchmark.tolerance,
        normalize=benchmark.normalize,
        max_clips=benchmark.max_clips,
        progress=progress,
    )
    failed = imported.quarantined
    if len(failed) > recipe.embed.max_failed * imported.videos:
        raise VmrError(
            f"{len(failed)} of {imported.videos} videos could not be imported, more than the share "
            f"embed.max_failed={recipe.embed.max_failed:g}; the first: {failed[0].error}"
        )
    config = recipe.config()
    if text := benchmark.text:
        texts = import_text(
            paths[-1],
            sets,
            f"{root}/text",
            key=text.key,
            normalize=text.normalize,
            max_tokens=text.max_tokens,
        )
        check_texts(texts.encoder, (row.query for read in sets for row in read.annotations))
        settings = config.train.model_copy(update={"text_encoder": texts.encoder})
        config = config.model_copy(update={"train": settings})
    trained = train(f"{root}/features", train_set, f"{root}/run", config, val_set, report)
    evaluation = evaluate(f"{root}/features", test_set, trained.best, f"{root}/report", config.evaluate)
    return Reproduction(imported, trained, evaluation)


def _sources(benchmark: BenchmarkConfig, features: Sequence[str | Path]) -> list[Path]:
    """The path of every source, the text's last."""
    sources = [*benchmark.sources, *([benchmark.text] if benchmark.text else [])]
    roots = [Path(path).expanduser() for path in features]
    if missing := [str(path) for path in roots if not path.exists()]:
        raise VmrError(f"no such file or directory: {missing[0]}")
    paths = []
    for i, source in enumerate(sources):
        inside = [root / source.path for root in roots if (root / source.path).exists()]
        if not inside and not (len(roots) == len(sources) and _may_be_source(roots[i])):
            raise VmrError(
                f"no {source.path} in {', '.join(map(str, roots))}: --features takes the folder that holds "
                f"{', '.join(s.path for s in sources)}, or these in this order"
            )
        paths.append(inside[0] if inside else roots[i])
    return paths


def _may_be_source(path: Path) -> bool:
    """Whether `path` is itself a folder or file of features, by its suffixes."""
    if path.is_dir():
        return any(file.suffix.lower() in SUFFIXES for file in path.iterdir())
    return path.suffix.lower() in HDF5


def _annotation(folder: str | Path, name: str) -> Path:
    path = Path(folder).expanduser() / name
    if not path.exists():
        raise VmrError(f"no {name} in {folder}: put the benchmark's annotation files there")
    return path
