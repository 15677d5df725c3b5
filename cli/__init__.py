"""The command line: one small file per command, each of which calls the library and presents.

main.py is the entry and turns every way to fail into the contract's exit code and one line;
terminal.py is how commands read and write. Engine and NumPy are imported inside the commands, so
that `--help` and a wrong option answer at once.
"""
