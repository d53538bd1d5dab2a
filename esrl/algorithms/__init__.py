"""The agents: evolution strategies and PPO, with their options, shaping, optimizers and memory plan.

Imports `rollouts`, `envs`, `policies`, `perturbation` and `core`.
"""
