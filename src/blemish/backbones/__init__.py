"""Frozen feature extractors: which there are, where their weights come from, how their features are kept.

Import the modules directly: ``catalogue`` answers without torch, ``backbone`` builds, ``teacher`` serves methods.
"""
