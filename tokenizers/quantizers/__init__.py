"""Quantizers of the tokenizer families."""
