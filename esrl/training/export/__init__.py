"""Export: trained policies as files that act without esrl, for NumPy, ONNX and StableHLO.

`README.md` beside this says what each file holds, and how to use it.
"""
