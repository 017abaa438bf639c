"""From files to rows of tokens in a fixed, resumable order. Knows no model and no engine."""
