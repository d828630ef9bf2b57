"""Compare models on labelled images: which reads better, surer and cheaper, and whether one can tell."""
