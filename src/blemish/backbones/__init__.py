"""Frozen feature extractors: which there are, where their weights come from, how features are drawn.

Import the modules directly: ``catalogue`` answers without torch, ``extractor`` builds, ``teacher`` serves methods.
"""
