"""The `crossfade` command: `main` and one file per noun. stdout is data, stderr is words."""
