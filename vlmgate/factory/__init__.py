"""How the built-in model is made: start with `train`. Part of the repository, not of the wheel: no command needs it."""
