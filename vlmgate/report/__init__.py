"""What a terminal shows: the summary, one image, progress."""
