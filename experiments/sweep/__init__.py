"""Does low rank cost anything, at which sigma and population?"""
