"""Runs the planner and the ledger of production over a recorded workload. Pure: files, clocks and pictures are
`runtime.history`'s and the commands'.

model.py    what goes in and what comes out, by columns
openb.py    the openb protocol: who arrives, how the allocation is read     gorand.py  the generator it draws from
replay.py   arrivals that never leave, through `plan()`
engine.py   jobs that run and end: discrete events over `plan()` and `step()`
"""
