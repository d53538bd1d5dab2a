"""How training grows beyond one host: bytes on the wire, and a model of what a generation costs."""
