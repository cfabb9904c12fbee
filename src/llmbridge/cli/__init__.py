"""The command line. Each file is one command; `app` lists them."""
