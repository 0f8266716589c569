"""`up` and `down`: start, supervise and stop the processes of one pool. Never imports Ray."""
