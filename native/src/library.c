/*
 * library.c: libuserbpf.so as one unit: the runtime, and what only the controller does with maps.
 */
#include "env_host.c"
#include "runtime.c"
#include "map_geometry.c"
#include "map_file.c"
#include "map_access.c"
#include "map_consume.c"
