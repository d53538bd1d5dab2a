"""The command line. Imports `training` and what it may import; nothing imports it."""
