"""Several runs instead of one: what to try, who tries it, and what came of it.

Knows nothing of models and training: a trial is a child process that runs `bigft train`, and all
that is known of it are its exit code, its last words and its `metrics.jsonl`.
"""
