"""The network of all-MiniLM-L6-v2 (Wang et al. 2020, arXiv 2002.10957) up to its token states."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn


class MiniLM(nn.Module):
    """Token ids `[n, tokens]`, nothing padded -> last hidden states, float32 `[n, tokens, 384]`."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        from transformers import AutoModel
        from transformers.utils import logging

        logging.disable_progress_bar()
        self.bert = AutoModel.from_pretrained(directory)

    def forward(self, ids: Tensor) -> Tensor:
        states: Tensor = self.bert(input_ids=ids).last_hidden_state
        return states
