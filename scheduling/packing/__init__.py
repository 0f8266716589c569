"""Where tasks go: job classes, what the room they leave is worth, and the named scoring rules.

Pure: arrays in, tables for `moorage.kernels.placing` out. The one heavy dependency, scipy's linear programming, is
imported when a value table is first computed.

- `classes`: the distinct shapes of waiting and past tasks with their frequencies (`Mix`)
- `values`: what a hole of so many milli-GPU is worth, from the duals of a cutting-stock linear program
- `scorings`: the tables of each rule under its name: potential, best-fit, fgd, dot-product, random, first
"""
