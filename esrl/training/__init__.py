"""Everything around an agent: the training loop, evaluation, checkpoints, a run's folder, recipes, pictures.

Imports `algorithms` and what it may import. An agent is only `init`, `step` and `act` here.
"""
