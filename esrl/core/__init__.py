"""Shared by every other room: names and errors, devices, settings of JAX, seconds of compiling.

Imports nothing of esrl.
"""
