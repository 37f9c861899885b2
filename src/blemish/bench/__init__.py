"""Methods x data sets x seeds: recipes, jobs in processes of their own, an append-only ledger, tables from it."""
