"""Runs the planner and the ledger of production over a recorded workload. Pure: files, clocks and pictures are
`runtime.history`'s and the commands'."""
