"""The durable control plane: store, admission, applier, reconcile loop, cost. Never imports Ray.

    api.py        what the front door sees                 service.py    the facade that answers it
    states.py     the one transition table                 records.py    the one writer of states and leases
    tables.py     the schema; migrations/ makes it         store.py      transactions, events
    admission.py  a submission to a PENDING job            book.py       the ledger in memory, rebuilt from the store
    loop.py       observe -> absorb -> plan -> apply -> act
    observing.py  observation to transitions               outcome.py    what an attempt's end means (pure)
    applier.py    re-checks a plan, commits leases         effects.py    the outbox: launch, stop, forget
    lifecycle.py  finished, or requeued                    launching.py  a lease to what Ray is asked to start
    growth.py     subleases: a running job's lease grows   serving.py    endpoints and their replicas
    cost.py       bills from lease events
    tokens.py     who may call                             simbackend.py a pool without Ray, same protocol
    leadership.py who writes and acts, who stands by       seats.py      how the death of a leader shows
    outage.py     what a database says when it cannot
    postgres.py   one writer, durable, on a server         failpoints.py where a test may kill this process

A tick holds no lock and no transaction while it talks to the cluster.
"""
