"""EGGROLL, OpenES or PPO, with equal tuning budgets?"""
