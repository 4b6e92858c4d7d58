"""Where a sample sits on a causal axis: at the edge of its pixel or at its centre.

A kernel at step dt, lag m, stands for the interval [m dt, (m+1) dt] of the continuous one: as a whole it is shifted by half
a sample, by another length at another resolution. Read at the pixel's centre, lag j collects [(j-1/2) dt, (j+1/2) dt], and
lag 0 the half pixel [0, dt/2] that lies on this side of the centre (the other half belongs to the reverse kernel). From a
kernel at half the step that is k[0] = fine[0], k[j] = fine[2j-1] + fine[2j].
"""

ALIGNMENTS = ("edge", "centre")


def check_align(align: str) -> None:
    """Raises ValueError unless `align` is one of ALIGNMENTS."""
    if align not in ALIGNMENTS:
        raise ValueError(f"align must be one of {ALIGNMENTS}, got {align!r}")
