"""Tiny dual encoders with random weights, saved the way the hub's are."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast, SiglipConfig, SiglipModel

MEAN, STD = [0.48, 0.45, 0.40], [0.26, 0.25, 0.27]
WORDS = ["a", "man", "woman", "dog", "opens", "rides", "runs", "over", "the", "door", "horse", "field"]
VOCABULARY = {word: i for i, word in enumerate(["<pad>", "<unk>", *WORDS, "<s>", "</s>"])}
TOKENS = 12


def save_tiny(directory: Path, kind: str) -> Path:
    """A `clip` (16-d space, 24 px), `siglip` or `siglip2` (32-d, 16 px); texts of up to 12 tokens.

    As the published ones of a fixed resolution, `siglip2` has SigLIP's network, a tokenizer that lowers
    letters, and a bilinear image processor. Its text tower is narrower than the common space.
    """
    torch.manual_seed(0)
    end = VOCABULARY["</s>"]
    layers = {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    text = {
        **layers,
        "hidden_size": 32,
        "vocab_size": len(VOCABULARY),
        "max_position_embeddings": TOKENS,
        "pad_token_id": 0,
        "bos_token_id": VOCABULARY["<s>"],
        "eos_token_id": end,
    }
    vision = {**layers, "patch_size": 8}
    if kind == "clip":
        vision |= {"hidden_size": 48, "image_size": 24}
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))
    else:
        vision |= {"hidden_size": 32, "image_size": 16}
        text |= {"hidden_size": 24, "projection_size": 32} if kind == "siglip2" else {}
        model = SiglipModel(SiglipConfig(text_config=text, vision_config=vision))
    model.save_pretrained(directory)
    tokenizer = Tokenizer(models.WordLevel(VOCABULARY, unk_token="<unk>"))
    if kind == "siglip2":
        tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    start = "<s> " if kind == "clip" else ""
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start}$A </s>", special_tokens=[("<s>", VOCABULARY["<s>"]), ("</s>", end)]
    )
    # As in the published ones, CLIP says that it takes an attention mask and SigLIP that it does not.
    inputs = ["input_ids", "attention_mask"] if kind == "clip" else ["input_ids"]
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="</s>",
        model_input_names=inputs,
    ).save_pretrained(directory)
    processor: dict[str, object] = {"image_mean": MEAN, "image_std": STD}
    if kind == "clip":
        processor |= {"image_processor_type": "CLIPImageProcessor", "resample": 3}
        processor |= {"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}}
    else:
        processor |= {"image_processor_type": "SiglipImageProcessor", "size": {"height": 16, "width": 16}}
        processor |= {"resample": 2 if kind == "siglip2" else 3}
    (directory / "preprocessor_config.json").write_text(json.dumps(processor))
    return directory
