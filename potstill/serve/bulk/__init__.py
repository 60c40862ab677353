"""Answer a whole file: texts in by line, answers out in the same order, resumable after a kill at any moment.

rows.py     lines of jsonl, csv and tsv, one by one
columns.py  which of a row's columns are the text
output.py   rows and their answers as jsonl or csv
parquet.py  both ends for parquet, with pyarrow
journal.py  what is on the disk already, so that a run can go on
work.py     the model at work on all of it
"""

from potstill.serve.bulk.work import BulkReport, BulkSettings, predict_file

__all__ = ["BulkReport", "BulkSettings", "predict_file"]
