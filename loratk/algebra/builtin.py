"""The merge rules that come with loratk, registered as any plugin's are."""

from ..hookspecs import hookimpl
from .factor_rules import Average, Sum, SvdSum
from .rules import MergeRule
from .sparse_rules import Dare, DareTies, Della, DellaLinear, MagnitudePrune, Ties


@hookimpl
def register_merge_rules() -> list[MergeRule]:
    """Sums, and what is made sparse first."""
    return [Sum(), Average(), SvdSum(), MagnitudePrune(), Ties(), Dare(), DareTies(), Della(), DellaLinear()]
