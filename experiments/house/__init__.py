"""How large is each room of the library, and who imports whom?"""
