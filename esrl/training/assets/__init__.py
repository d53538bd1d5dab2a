"""Files that pages are built from, read through `importlib.resources`."""
