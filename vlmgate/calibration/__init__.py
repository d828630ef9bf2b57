"""Choose a gate from labelled images: how well scores tell right from wrong, what it costs, what can be promised."""
