"""How the built-in model is made: rendered parts, captions, training and its evaluation. No command needs any of it."""
