"""`python -m iocp_loop`: the demo and the doctor."""
