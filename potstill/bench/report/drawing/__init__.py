"""How the pictures of a report are drawn; `potstill.bench.report.charts` says which there are."""
