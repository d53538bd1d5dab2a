"""Many workers play one generation: who plays what, what travels, and what happens where a worker is lost.

May import algorithms and what is below. Ray alone is imported, inside of functions, by `ray_workers` and `ray_session`.
"""
