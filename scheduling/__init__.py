"""The pure core: types, ledger, policies, planner and validator.

May not import Ray, do I/O, read a clock or draw a random number: time, ids and ties are arguments.
`plan(snapshot, policy, now_ns)` is the whole of it: same input, same plan, byte for byte.
"""

if __name__ == "scheduling":
    raise ImportError("'scheduling' is a root folder of Moorage: import it as 'moorage.scheduling'")
