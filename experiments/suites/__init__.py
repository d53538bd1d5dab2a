"""What does compiling each environment take, and how fast does EGGROLL train in it?"""
