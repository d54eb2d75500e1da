"""The answers: DuckDB read models, derived from the log and rebuilt from it at will."""
