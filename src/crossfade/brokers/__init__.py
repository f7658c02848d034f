"""What Crossfade needs of a broker (`protocol`), and who gives it: `memory`, `redis`, `kafka`."""
