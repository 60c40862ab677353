"""How the pictures of a report are drawn; `potstill.bench.charts` says which there are."""
