# Which steps a cluster gets as one job. No profile's `groups`: those cannot tell whether the sum fits the user's partition.
from vqbench.cluster import group_of


def grouped(kind):
    """A rule's group: that of a step of this kind, where all of it together is short enough for one job."""
    return user_errors(lambda wc: group_of(bench_of(wc.root), key_of(kind, wc)))
