"""Faults on a running lab, each with an end of its own and with the effect that was seen."""


class Faults:
    """Filled in by the next step."""

    def __init__(self, lab: object) -> None:
        self.lab = lab
