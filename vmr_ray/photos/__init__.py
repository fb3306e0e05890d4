"""Captioned photos -> features and annotations of composed videos, to train on. No video is rendered."""
