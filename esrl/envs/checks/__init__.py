"""The checks of `esrl.check_env`: the contract, episodes on the device or on the host, purity.

Imports `envs.base` and what `envs` may import.
"""
