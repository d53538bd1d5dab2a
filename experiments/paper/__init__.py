"""How do the paper's configurations do on the paper's environments?"""
