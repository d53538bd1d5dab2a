"""The idea of EGGROLL: noise spaces, and the perturbed forward pass of an unmodified network.

Imports `core` only; knows no environment, no policy and no agent.
"""
