"""Imports features and token states that other projects computed."""
