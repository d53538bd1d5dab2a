"""Suites of environments, one small module each; third-party packages are imported inside functions only (level 3)."""
