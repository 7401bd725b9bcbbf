"""Exporter of covidseg: from a training checkpoint to a bundle other engines run, with proof of parity."""
