"""The tools that Crossfade is compared with, each at its best settings that we found, each a process of its own."""
