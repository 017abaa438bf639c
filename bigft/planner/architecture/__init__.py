"""The weights of each model family, read from `config.json`: names, shapes and counts.

One module per family; `build.py` finds it. Nothing here imports transformers.
"""
