"""The command line: it parses, calls the API and renders. Nothing else here prints or exits."""
