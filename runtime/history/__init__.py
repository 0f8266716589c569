"""Histories for the simulator: readers of traces and of Moorage's own store, the figures and the pictures of a run.

table.py    a CSV file to typed columns, with what was left out and why
openb.py    Alibaba's 2023 GPU trace: nodes and jobs      philly.py   Microsoft's Philly trace
own.py      what this pool did, from the control plane's tables
trace.py    what every reader answers                     figures.py  a run's columns to the figures people compare
pictures.py those figures drawn; needs `moorage[plots]`

Readers raise `DataError` (the file as a whole) and leave single rows out with a code; nothing is repaired in silence.
"""
