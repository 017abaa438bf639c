"""One module per kind of file: a path in, raw rows with their places out.

Readers know nothing of formats, tokenizers or settings. What spoils one row becomes an `Unreadable`
row; what spoils the rest of the file is a `DataError`.
"""
