"""Answer extraction and equivalence, intervals and paired tests, evaluation records."""
