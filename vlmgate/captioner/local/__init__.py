"""Caption with a checkpoint that runs in this process; start with `engine.TransformersCaptioner`."""
