"""Commands: parse, call one function, print. One file for each group."""
