"""The vocabulary as data: records, positions, markers, mappings, partitioners, wire formats. Pure: no I/O, no clock."""
