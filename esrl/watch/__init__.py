"""A local page that shows runs while they train, and compares them afterwards: `esrl watch`.

Imports of `training` and `core` only what needs the standard library alone, so that the page is up at once.
"""
