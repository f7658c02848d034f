"""The independent proof: reads both sides itself and names every record that differs. Never imports the relay."""
