"""`python -m hypervisor`: its options, and a console on the terminal."""
