"""Makes the numbers of `everyday` and `everyday-multilingual`, `vmr_ray/encoders/NAME.safetensors`.

    pip download timm --no-deps
    python -m tools.everyday timm-*.whl
    python -m tools.everyday timm-*.whl --encoder everyday-multilingual

The names and definitions of the 1,000 ImageNet classes are read from a wheel of timm, which is not installed;
only their sentence vectors are kept. The neutral sentences come from the grammar below. No picture and no
caption goes into the file.

The numbers belong to the name: indexes hold vectors that were made with them. If they change, the encoder
needs another name.
"""

from __future__ import annotations

import argparse
import random
import sys
import zipfile
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from vmr_ray.encoders import everyday
from vmr_ray.encoders.names import EVERYDAY, MULTILINGUAL
from vmr_ray.errors import VmrError
from vmr_ray.storage import write_bytes

RIDGE = 1.0
RANK = 256  # of the map from sentences to the classifier's features
NEUTRAL = 1000

# Sentences of which none is about the picture: their mean is what every sentence has in common.
WHO = (
    *("A man", "A woman", "A person", "Two people", "A boy", "A girl", "Two men", "Two women", "Children"),
    *("A group of people", "A young man", "An old woman", "A little girl", "Several people", "Someone"),
    *("A couple", "A dog", "A cat", "A bird", "An animal"),
)
WEARING = (
    *("", "", "", "in a blue shirt", "in a black jacket", "in a red dress", "with long hair"),
    *("in a white hat", "with glasses", "with a bag", "in jeans"),
)
DOING = (
    *("is standing", "is sitting", "is walking", "is running", "is smiling", "is jumping", "is playing"),
    *("are waiting", "is looking at the camera", "is talking to another person", "is holding a cup"),
    *("is riding a bike", "is carrying a box", "is eating food", "is reading a book", "is playing a guitar"),
    *("is throwing a ball", "is working", "is sleeping", "is taking a picture", "is opening a door"),
    *("is pushing a cart", "is climbing", "is swimming", "is cooking", "is dancing", "is drinking water"),
    "is using a phone",
)
WHERE = (
    *("", "", "outside", "in a room", "on the street", "in a park", "on the grass", "in the water"),
    *("at a table", "in front of a building", "near a tree", "on the beach", "in the kitchen", "in the snow"),
    *("on a bench", "in a field", "at night", "in a crowd", "next to a car", "on a stage", "down a hill"),
    *("by a window", "in a store"),
)
THING = (
    *("A red car", "A white house", "A table with food", "A street", "A boat on the water"),
    *("A tall building", "A tree", "Flowers", "A train", "A plate of food", "Mountains under a blue sky"),
    *("A small room", "A dog", "A horse", "A computer on a desk", "An empty road", "A bridge over a river"),
    *("A shop window", "A bed", "A field of grass"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the numbers of `everyday`.")
    parser.add_argument("wheel", type=Path, help="a wheel of timm")
    parser.add_argument("--encoder", choices=(EVERYDAY, MULTILINGUAL), default=EVERYDAY)
    parser.add_argument("--out", type=Path, help="default: where the package keeps it")
    arguments = parser.parse_args()
    out = arguments.out or everyday.data_file(arguments.encoder)
    data = save(tables(read_classes(arguments.wheel), arguments.encoder))
    write_bytes(str(out), data)
    print(f"{len(data) / 1e6:.2f} MB -> {out}")


def read_classes(wheel: Path) -> list[tuple[str, str]]:
    """(names, definition) of every class, in the order of the classifier's outputs.

    Raises:
        VmrError: the file is no wheel of timm.
    """
    try:
        with zipfile.ZipFile(wheel) as files:
            synsets, lemmas, definitions = (
                files.read(f"timm/data/_info/{name}.txt").decode().splitlines()
                for name in ("imagenet_synsets", "imagenet_synset_to_lemma", "imagenet_synset_to_definition")
            )
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise VmrError(f"{wheel} is no wheel of timm ({error}): get one with `pip download timm`") from None
    names, meanings = (dict(line.split("\t") for line in lines) for lines in (lemmas, definitions))
    return [(names[synset], meanings[synset]) for synset in synsets]


def tables(classes: list[tuple[str, str]], name: str) -> dict[str, np.ndarray]:
    """The arrays that `everyday.EverydayTables` reads."""
    encoder = everyday.sentence_encoder(name, threads=1)
    weights = everyday.classifier()[0].astype(np.float64)  # [1000, 1280]
    both = everyday.sentence_vectors(encoder, [f"{name}: {meaning}" for name, meaning in classes])
    names, meanings = (
        everyday.sentence_vectors(encoder, list(texts)) for texts in zip(*classes, strict=True)
    )
    vectors = everyday.unit(both + (names + meanings) / 2).astype(np.float16)

    # Ridge regression from the classes' sentences to their weights, in its main directions.
    inputs = vectors.astype(np.float64)  # [1000, S]
    gram = inputs.T @ inputs + RIDGE * np.eye(inputs.shape[1])
    ridge = np.linalg.solve(gram, inputs.T @ (weights - weights.mean(0)))  # [S, 1280]
    left, scales, right = np.linalg.svd(ridge, full_matrices=False)

    neutral = everyday.sentence_vectors(encoder, neutral_sentences())
    return {
        "classes": vectors,
        "text_to_basis": (left[:, :RANK] * scales[:RANK]).astype(np.float16),
        "basis": right[:RANK].astype(np.float16),
        "neutral_sentence": neutral.mean(0).astype(np.float32),
        "neutral_classes": everyday.nearest_classes(neutral, inputs).mean(0).astype(np.float32),
    }


def neutral_sentences() -> list[str]:
    choose = random.Random(0)
    sentences = []
    for _ in range(NEUTRAL):
        if choose.random() < 0.2:
            parts = [choose.choice(THING), choose.choice(WHERE)]
        else:
            parts = [choose.choice(group) for group in (WHO, WEARING, DOING, WHERE)]
        sentences.append(" ".join(part for part in parts if part) + ".")
    return sentences


if __name__ == "__main__":
    try:
        main()
    except VmrError as error:
        sys.exit(f"error: {error}")
