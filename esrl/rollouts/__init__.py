"""All stepping: whole episodes of a population, and a fixed number of steps in lanes that live on.

Imports `envs`, `policies` and `core`; knows no agent.
"""
