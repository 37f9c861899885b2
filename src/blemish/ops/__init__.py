"""Pure tensor bricks that methods share: no files, no state, no global seed."""
