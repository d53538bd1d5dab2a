"""What is claimed of EGGROLL, measured beside theory."""
