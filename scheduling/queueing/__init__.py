"""Who should hold GPUs now: one rule per file, columns in, columns out.

Every rule gives a key per row, an integer where lower is served first; `choose` turns keys into who runs, by counting
GPUs; where the tasks go is `moorage.kernels.placing`'s question. No rule but `srtf` may know a duration beforehand.

index.py      GPU-time attained and the learned history -> key, in 1/1024 of a doubling
history.py    how long jobs of a group last, from what ended and what still runs: a value of integer arrays
fifo.py       in order of submission
srtf.py       least remaining work: an oracle, for comparison in the simulator only
oldest.py     the slice kept for who was queued longest: a bound on waiting
fairshare.py  a team never gets less than a partition of its own would have given; shares of a tree by DRF
choose.py     who stays, who starts, who leaves: hysteresis, minimum runtime, least loss
jit.py        numba with types
"""
