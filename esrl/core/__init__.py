"""What every other room may use: names and errors, devices, settings of JAX, seconds of compiling.

Imports nothing of esrl.
"""
