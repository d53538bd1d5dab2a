"""How does esrl do beside other libraries?"""
