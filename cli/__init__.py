"""The command line: one file per command, which parses options, calls the library and prints.

main.py is the entry point and maps every failure to an exit code and one line on stderr;
terminal.py holds input and output. Commands import NumPy and the engine when they run, which lets
`--help` and a wrong option answer at once.
"""
