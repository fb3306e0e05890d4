"""Indexing and searching: stage 1 in LanceDB, stage 2 by the network."""
