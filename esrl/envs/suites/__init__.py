"""One module for each suite of environments: `names()` and `make(name, **options)`.

Imports `envs.base` and what `envs` may import; the suite's own package inside functions only.
"""
