"""vqbench: re-runs the papers on discrete image tokenizers.

The importable library that every room (``tokenizers``, ``generators``, ``eval``) stands on. Importing it
loads neither torch nor pandas, so the Snakefile may do so in every cluster job.
"""

__version__ = "0.1.0"
