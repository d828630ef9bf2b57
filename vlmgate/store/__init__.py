"""Keep what was read and what was decided: journal, rows and the Parquet result."""
