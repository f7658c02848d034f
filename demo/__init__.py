"""The demonstration: `python -m demo` copies live streams both ways under kill -9 and proves that nothing was lost."""
