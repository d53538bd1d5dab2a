"""From an observation to an action: networks, action heads, normalization, a policy and its critic.

Imports `core` only.
"""
