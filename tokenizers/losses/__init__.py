"""Losses of the tokenizer families."""
