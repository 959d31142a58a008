"""`python -m bt_compiler` is `btc`."""

from bt_compiler.cli import main

if __name__ == "__main__":
    main()
