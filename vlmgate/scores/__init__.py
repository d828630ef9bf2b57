"""Turn the K readings of one image into scores: words, answers, refusals, kernels, diversity, novelty."""
