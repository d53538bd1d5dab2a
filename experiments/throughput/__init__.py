"""How near is a perturbed forward pass to plain inference, and where does the time of a generation go?"""
