"""`python -m nsam` is the command `nsam`."""

from nsam.cli import main

if __name__ == "__main__":
    main()
