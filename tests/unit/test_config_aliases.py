"""Keys that are set from outside, where the file says one thing at several places by a YAML alias."""

from __future__ import annotations

from crossfade.config.tree import override, parse

FILE = """\
streams:
  m:
    old: &side {lanes: "msg:<lane>", count: 4, more: &more {deep: {x: "1"}}}
    new: *side
    third: *more
"""


def test_a_key_that_is_set_on_one_side_leaves_the_other_sides_of_an_alias_alone() -> None:
    root, problems = parse(FILE, "F")
    assert not problems
    variables = {"CROSSFADE_STREAMS__M__NEW__MORE__DEEP__X": "2"}
    override(root, {"streams.m.new.lanes": "fresh:<lane>", "streams.m.new.count": "5"}, variables)
    sides = root.entries["streams"].entries["m"].entries
    shown = {
        name: [side.entries[key].text for key in ("lanes", "count") if key in side.entries]
        for name, side in sides.items()
    }
    assert shown == {"old": ["msg:<lane>", "4"], "new": ["fresh:<lane>", "5"], "third": []}
    deep = {name: side.entries.get("more", side).entries["deep"].entries["x"].text for name, side in sides.items()}
    assert deep == {"old": "1", "new": "2", "third": "1"}
