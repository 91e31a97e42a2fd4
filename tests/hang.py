"""How long tests wait for what has to come: an end to hangs, no measure of speed."""

# Ten times what the slowest step took beside eight busy loops on two CPUs. A wait that
# fails by it is told with what was waited for; the limit of a whole test, in
# pyproject.toml, is longer and only prints where every thread stands.
HANG_S = 1000.0
