"""Decide which readings are accepted: the rules, the gate file, drift, and when enough samples are drawn."""
