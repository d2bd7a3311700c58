"""`python -m jpgen.cli`."""

from jpgen.cli import main

if __name__ == "__main__":
    main()
