"""The demo's steps, one file each, and the few things they share: checks, the screen, the pool, submitted jobs."""
