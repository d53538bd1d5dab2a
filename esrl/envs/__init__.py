"""Environments: the contract, `make` and the registry of suites, checks, and the way back to Gymnasium.

Imports `policies` and `core`. Third-party suites are imported inside functions of `envs.suites` only.
"""
