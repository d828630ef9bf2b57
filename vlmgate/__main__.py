"""`python -m vlmgate` is `vlmgate`."""

from vlmgate.cli import main

if __name__ == "__main__":
    main()
