"""Frozen feature extractors: which there are, where their weights come from, how their features are kept."""
