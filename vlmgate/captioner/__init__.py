"""Ask a vision-language model for K sampled captions of an image; start with `load_captioner`."""

from vlmgate.captioner.load import load_captioner
from vlmgate.captioner.protocol import Captioner, DrawsInRounds, Enough, KnowsItsBatch, Prepares, Timed

__all__ = ["Captioner", "DrawsInRounds", "Enough", "KnowsItsBatch", "Prepares", "Timed", "load_captioner"]
