"""Maps: shared memory files that programs in any process and the controller use at the same time.

A map is a memfd (``userbpf-map:NAME``): the areas of ``struct ub_map_def`` behind a header page, then the
controller's description of it, so that who has the descriptor knows names and types.
"""

from userbpf.maps.map import Map
from userbpf.maps.memory import MapInfo

__all__ = ["Map", "MapInfo"]
