"""The command that redraws every figure, and the figures of the front page."""
