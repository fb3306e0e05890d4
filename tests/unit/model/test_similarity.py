"""Ranking by a dual encoder's similarity, without a network."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from tests.tiny_hf import save_tiny
from vmr_ray.config import ModelConfig
from vmr_ray.encoders import dual_encoder
from vmr_ray.errors import VmrError
from vmr_ray.model.checkpoint import CheckpointInfo, Similarity, load_info, load_network
from vmr_ray.model.loader import load_predictor, predictor_of
from vmr_ray.model.predictor import Predictor
from vmr_ray.model.similarity import SimilarityPredictor, similarity_checkpoint
from vmr_ray.schema import StoreSpec
from vmr_ray.search.build import copy_checkpoint

DIM = 16


INFO = CheckpointInfo(
    model=ModelConfig(),
    similarity=Similarity(scale=100, bias=0),
    frame_encoder="hf:x",
    frame_dim=DIM,
    sampling="fps=1",
    text_encoder="sentence:hf:x",
    token_dim=DIM,
)


def predictor(info: CheckpointInfo = INFO) -> Predictor:
    return predictor_of(info.network(), info)


def planted(frames: int, *places: tuple[int, int], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A sentence's vector and features [frames, DIM] that resemble it in `places` only."""
    rng = np.random.default_rng(seed)
    sentence = rng.standard_normal(DIM)
    features = rng.standard_normal((frames, DIM))
    features -= np.outer(features @ sentence, sentence) / (sentence @ sentence)
    for first, last in places:
        features[first:last] += 2 * sentence
    return sentence[None].astype(np.float32), features.astype(np.float32)


@pytest.mark.parametrize("frames", [40, 700])
def test_the_frames_that_resemble_the_sentence_are_the_moment(frames: int):
    ranker = predictor()
    sentence, features = planted(frames, (20, 30))
    windows = ranker.encode_videos([("v", features, 2.0 * np.arange(frames + 1))])
    queries = ranker.encode_tokens([sentence])
    ranked = ranker.rank(windows, queries, [(w, 0) for w in range(len(windows))], 3, 0.5)
    start, end, _ = max((span for spans in ranked for span in spans), key=lambda span: span[2])
    assert abs(start - 40) <= 2 and abs(end - 60) <= 2
    curve = np.concatenate(ranker.membership_of(windows, queries, 0))
    assert len(curve) == frames
    assert curve[22:28].min() > 0.5 > np.delete(curve, np.s_[19:31]).max()


def test_the_video_that_shows_it_scores_highest():
    ranker = predictor()
    sentence, features = planted(50, (10, 20))
    _, other = planted(50, seed=1)
    windows = ranker.encode_videos(
        [(name, f, np.arange(51.0)) for name, f in (("a", other), ("b", features))]
    )
    ((_, _, first), *_), ((_, _, second), *_) = ranker.rank(
        windows, ranker.encode_tokens([sentence]), [(0, 0), (1, 0)], 1, 0.5
    )
    assert second > first


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_a_checkpoint_without_weights(tmp_path: Path, kind: str):
    name = f"hf:{save_tiny(tmp_path / kind, kind)}"
    encoder = dual_encoder(name)
    spec = StoreSpec(encoder=name, dim=encoder.dim, sampling="fps=1")
    info = similarity_checkpoint(spec, "features")
    assert info == similarity_checkpoint(spec, "features")
    assert info.dim == encoder.dim and info.version
    (tmp_path / "checkpoint.json").write_text(info.model_dump_json())
    assert load_info(tmp_path) == info
    loaded = load_predictor(tmp_path)
    assert isinstance(loaded, SimilarityPredictor)
    (vector,) = loaded.encode_tokens(loaded.text(["a dog runs"])).vectors.numpy()
    np.testing.assert_allclose(vector, encoder.sentence(["a dog runs"])[0], rtol=1e-5)
    assert not info.weights and not list(load_network(tmp_path)[0].parameters())


def test_features_that_know_no_sentences_are_refused():
    spec = StoreSpec(encoder="imported:i3d", dim=1024, sampling="fps=1")
    with pytest.raises(VmrError, match="give a --checkpoint, or embed with --encoder everyday, or hf:"):
        similarity_checkpoint(spec, "features")
    with pytest.raises(
        VmrError, match="which the encoder everyday does not read: embed with --encoder everyday"
    ):
        similarity_checkpoint(spec, "features", "everyday")


def test_another_encoder_of_the_same_features():
    spec = StoreSpec(encoder="efficientnet-lite0", dim=1280, sampling="fps=1")
    usual, other = similarity_checkpoint(spec, "f"), similarity_checkpoint(spec, "f", "everyday-multilingual")
    assert usual == similarity_checkpoint(spec, "f", "everyday")
    assert other.text_encoder == "sentence:everyday-multilingual"
    assert other.frame_encoder == usual.frame_encoder and other.version != usual.version


def test_features_of_the_default_encoder_need_no_checkpoint(tmp_path: Path):
    spec = StoreSpec(encoder="efficientnet-lite0", dim=1280, sampling="fps=1")
    info = similarity_checkpoint(spec, "features")
    copy_checkpoint(None, info, str(tmp_path))
    ranker = load_predictor(tmp_path / "checkpoint")
    assert isinstance(ranker, SimilarityPredictor) and ranker.network.residual is not None
    features = np.abs(np.random.default_rng(0).standard_normal((9, 1280))).astype(np.float16)
    (window,) = ranker.encode_videos([("v", features, np.arange(10.0))])
    queries = ranker.encode_tokens(ranker.text(["a dog runs", "two people dance"]))
    assert window.states.shape == (9, info.dim) and queries.vectors.shape == (2, info.dim)
    assert info.dim == info.token_dim != info.frame_dim == 1280
    ((span,),) = ranker.rank([window], queries, [(0, 1)], 1, 0.5)
    assert 0 <= span[0] < span[1] <= 9


def test_the_shipped_weights_are_for_one_frame_a_second():
    infos = {
        sampling: similarity_checkpoint(StoreSpec("efficientnet-lite0", 1280, sampling), "features")
        for sampling in ("fps=1", "fps=4", "keyframes")
    }
    assert [info.weights is not None for info in infos.values()] == [True, False, False]


def test_damaged_weights_are_found(tmp_path: Path):
    info = similarity_checkpoint(StoreSpec("efficientnet-lite0", 1280, "fps=1"), "features")
    copy_checkpoint(None, info, str(tmp_path))
    weights = tmp_path / "checkpoint" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(VmrError, match="truncated or altered"):
        load_predictor(tmp_path / "checkpoint")


def test_an_index_made_before_there_were_shots_keeps_its_version(tmp_path: Path):
    """The version of a checkpoint without weights is a checksum of its fields; see `copy_checkpoint`."""
    name = f"hf:{save_tiny(tmp_path / 'clip', 'clip')}"
    info = similarity_checkpoint(StoreSpec(encoder=name, dim=dual_encoder(name).dim, sampling="fps=1"), "f")
    before = info.model_dump(mode="json") | {"version": ""}
    del before["similarity"]["shots"], before["similarity"]["refined"], before["presence"]
    assert info.version == hashlib.sha256(json.dumps(before, separators=(",", ":")).encode()).hexdigest()


# --- shots


def in_shots(with_shots: bool) -> Predictor:
    """Of a joint space whose last half shows where the shots are."""
    similarity = Similarity(scale=100, bias=0, shots=(DIM // 2, 0.5) if with_shots else None)
    return predictor(INFO.model_copy(update={"similarity": similarity}))


def test_a_moment_keeps_to_its_shot():
    """Frames 20 to 29 show it, and the next shot resembles it, but less."""
    sentence = np.zeros(DIM, np.float32)
    sentence[0] = 1
    looks = np.repeat(np.eye(DIM // 2)[:4], 10, axis=0)  # four shots of ten frames
    fit = np.repeat([0.0, 0.0, 1.0, 0.65], 10)
    features = np.concatenate([fit[:, None], np.ones((40, DIM // 2 - 1)), 3 * looks], 1).astype(np.float32)
    answers = {}
    for with_shots in (True, False):
        ranker = in_shots(with_shots)
        windows = ranker.encode_videos([("v", features, np.arange(41.0))])
        queries = ranker.encode_tokens([sentence[None]])
        (answers[with_shots],) = ranker.rank(windows, queries, [(0, 0)], 1, 0.5)
    assert [span[:2] for span in answers[True]] == [(20, 30)]
    assert [span[:2] for span in answers[False]] != [(20, 30)]
    # The score compares videos, so it must not depend on the number of shots in one.
    assert answers[True][0][2] == pytest.approx(answers[False][0][2], abs=0.5)


def test_one_shot_is_as_no_shots():
    sentence, features = planted(40, (20, 30))
    features[:, DIM // 2 :] = 1
    answers = []
    for with_shots in (True, False):
        ranker = in_shots(with_shots)
        windows = ranker.encode_videos(
            [("v", features, np.arange(41.0)), ("short", features[:25], np.arange(26.0))]
        )
        answers.append(ranker.rank(windows, ranker.encode_tokens([sentence]), [(0, 0), (1, 0)], 3, 0.5))
    assert answers[0] == answers[1]
