"""Steps by which a store of any version before becomes one of this version."""
