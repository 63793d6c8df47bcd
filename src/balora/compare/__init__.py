"""Compare methods honestly: every cell a run of `balora train` and its evaluation, resumable."""
