"""Which models share which devices: replicas for given request rates, memory and latency targets. Pure.

A device runs one request at a time, in order of arrival, whatever model it is for: models on one device interfere by
queueing behind each other and in no other way. So a device is one queue, and what a model waits there follows from all
that share it:

    load        rho  = sum over models of rate * service time, bounded by `most_load`
    waiting     W    = rho / (1 - rho) * E[S] * (c_a^2 + c_s^2) / 2         Kingman, 1961; exact for Poisson arrivals
                                                                            (Pollaczek and Khinchine)
    its tail    P(wait > t) = rho * exp(-rho * t / W)                       exact for M/M/1; heavy traffic: Kingman

E[S] and c_s^2 are of the mixed service times of the device, c_a^2 the variability of its arrivals: that of a stream
split at random over k replicas is 1 + (c^2 - 1) / k, that of several together their mean by rate (Whitt, "The Queueing
Network Analyzer", 1983). A request meets its target when it waits no longer than the target less its own service time.

The replicas of a model take equal parts of its rate. Placement is greedy, then a local search: it places first what
every model needs, adds replicas while targets are missed, and then moves, swaps and removes them, for fewer devices
among placements that meet the targets alike. AlpaServe (Li et al., OSDI 2023) showed why to share devices although each
request may wait for another model's: bursts of one find the other idle. MuxServe (Duan et al., ICML 2024) packs by rate
and memory likewise. Neither's way of splitting one model over devices is here, and no batching: a profile is of single
requests.

- `model`: what is to be served, and what a placement says
- `queue`: the wait on one device
- `search`: `pack(models, devices, goal)`
"""
