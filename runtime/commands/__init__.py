"""The implementations behind the command line, one module per noun."""
