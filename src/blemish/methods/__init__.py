"""One paper a file, readable alone; methods never import each other."""
