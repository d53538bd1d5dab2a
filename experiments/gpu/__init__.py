"""What does one GPU do with esrl, in under eight minutes?"""
