"""Caption with a model server that speaks OpenAI's chat protocol; start with `engine.EndpointCaptioner`."""
