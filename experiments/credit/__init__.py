"""What credit for every step is worth, and what it costs to go without backpropagation."""
