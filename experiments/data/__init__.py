"""One's own sequences: a file becomes sequences of unequal length, three splits, and batches by length.

records.py   what every reader makes, and the one line that says what is wrong with a file
files.py     the reader of a file, by the end of its name
tables.py    .csv, .tsv (one row a step), .jsonl (one line a sequence)
arrays.py    .npz, .mat
rolls.py     the field's piano rolls: .mat with traindata, validdata, testdata; .json with train, valid, test
archive.py   .ts, the files of the UEA and UCR archive
sequences.py sequences, checked and of one type
splits.py    train and validation, and the test split, which is handed out once
source.py    [data] of a config, and the config of an experiment that reads it
batches.py   batches by length for all seeds at once

docs/own_data.md says it for those who have a file.
"""
