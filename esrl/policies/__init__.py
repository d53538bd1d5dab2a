"""From an observation to an action: networks, action heads, normalisation, a policy and its critic.

Imports `core` only.
"""
