"""The pure core: types, ledger, policies, planner and validator.

May not import Ray, do I/O, read a clock or draw a random number: time, ids and ties are arguments."""

if __name__ == "scheduling":
    raise ImportError("'scheduling' is a root folder of Moorage: import it as 'moorage.scheduling'")
