"""The schema of `shares` in policy files."""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated

import msgspec
from msgspec import Meta

from shaping.policy.scalars import LineRate
from shaping.shares.function import Piece

BEST_EFFORT = "best_effort"


class PieceConfig(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """A part of what a group gets in a level.

    weight: Share that the group gets of what all groups of the level can have, in relation to the
        weights of the others.
    upto: Rate up to which the weight applies; the next piece goes on from there. Default: without a
        bound, which only the last piece of the last level can be.
    """

    weight: Annotated[float, Meta(ge=1e-3, le=1e6, description="a number from 0.001 to 1000000")]
    upto: Annotated[LineRate | None, Meta(description="a rate such as 10gbit")] = None

    @property
    def piece(self) -> Piece:
        """The piece in exact numbers."""
        return Piece(Fraction(repr(self.weight)), None if self.upto is None else int(self.upto))


class ShareConfig(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """A capacity that several NICs or classes share: what each may send is computed from the
    others' demand. A class is named as in steps of a scenario, such as web.egress/gold. A group of
    several is written with `of`: {weight: 3, of: {web: {weight: 2}, db.egress/gold: {}}}.

    capacity: Rate that all groups together do not exceed.
    levels: Names of levels in the order of their priority: of a level nothing is given while a
        group lacks some of the one before. Default: one level, best_effort.
    groups: What each group has in each level, by the name of the NIC that sends, of the class, or
        of several that divide what the group gets.
    members: The NICs and classes of each group of several, and by what they divide it, as groups
        do.
    """

    capacity: Annotated[LineRate, Meta(description="a rate such as 35gbit", examples=["35gbit"])]
    levels: Annotated[
        list[str],
        Meta(
            description="a list of names such as [guaranteed, best_effort]",
            examples=[["guaranteed", "best_effort"]],
        ),
    ] = msgspec.field(default_factory=lambda: [BEST_EFFORT])
    groups: Annotated[
        dict[str, dict[str, list[PieceConfig]]],
        Meta(
            description="a mapping from a NIC, a class or a group to levels with pieces, "
            "such as {web: {best_effort: [{weight: 20, upto: 10gbit}, {weight: 5}]}}",
            examples=[{"web": {BEST_EFFORT: [{"weight": 1}]}}],
        ),
    ] = {}
    members: Annotated[
        dict[str, dict[str, dict[str, list[PieceConfig]]]],
        Meta(
            description="a mapping from a group to its NICs and classes, such as "
            "{search: {web: {best_effort: [{weight: 2}]}, cache: {best_effort: [{weight: 1}]}}}",
            examples=[{"search": {"web": {BEST_EFFORT: [{"weight": 2}]}}}],
        ),
    ] = {}

    @property
    def leaves(self) -> list[str]:
        """The NICs and classes that share the capacity."""
        alone = [group for group in self.groups if group not in self.members]
        return alone + [leaf for inner in self.members.values() for leaf in inner]


def exact_pieces(levels: dict[str, list[PieceConfig]]) -> dict[str, list[Piece]]:
    """Pieces by level, in exact numbers."""
    return {level: [each.piece for each in pieces] for level, pieces in levels.items()}
