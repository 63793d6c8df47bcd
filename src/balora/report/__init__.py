"""Read the rows of a comparison: statistics, tables, plots and the page. Nothing is run here."""
